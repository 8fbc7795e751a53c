// Dynamic chunks over a few threads; the first exception is rethrown in the caller.
//
// Where the process has a GNU OpenMP runtime, as torch brings one, its threads are used: they wait in a
// loop for a while after each parallel part of torch, and threads of our own would have to share the
// processors with them.
#pragma once

#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace transposable {

// Runs a function in some threads at once, possibly fewer, the caller among them.
using TeamRunner = void (*)(void (*run)(void*), void* data, unsigned threads, unsigned flags);

// The process that loaded this: threads of a runtime do not survive a fork, and it would wait for them.
inline const pid_t loader = getpid();

inline TeamRunner team_runner() {
  static const auto found =
      reinterpret_cast<TeamRunner>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return getpid() == loader ? found : nullptr;
}

// Calls work(begin, end) on chunks of [0, count) until none is left. `make` builds one worker for
// each thread: make() -> work; `done(work)` is called for each at its end, one at a time. One thread
// runs in the caller, without starting any.
template <class Make, class Done>
void parallel_chunks(std::int64_t count, std::int64_t chunk, int threads, Make make, Done done) {
  const std::int64_t chunks = (count + chunk - 1) / chunk;
  threads = static_cast<int>(std::clamp<std::int64_t>(threads, 1, std::max<std::int64_t>(chunks, 1)));
  std::atomic<std::int64_t> next{0};
  std::exception_ptr failure;
  std::mutex guard;
  auto run = [&] {
    try {
      auto work = make();
      for (;;) {
        const std::int64_t begin = next.fetch_add(chunk, std::memory_order_relaxed);
        if (begin >= count) break;
        work(begin, std::min(begin + chunk, count));
      }
      const std::lock_guard lock(guard);
      done(work);
    } catch (...) {
      next.store(count, std::memory_order_relaxed);
      const std::lock_guard lock(guard);
      if (!failure) failure = std::current_exception();
    }
  };
  if (threads == 1) {
    run();
  } else if (const TeamRunner team = team_runner()) {
    team([](void* data) { (*static_cast<decltype(run)*>(data))(); }, &run,
         static_cast<unsigned>(threads), 0);
  } else {
    std::vector<std::jthread> others;
    for (int t = 1; t < threads; ++t) others.emplace_back(run);
    run();
  }
  if (failure) std::rethrow_exception(failure);
}

template <class Make>
void parallel_chunks(std::int64_t count, std::int64_t chunk, int threads, Make make) {
  parallel_chunks(count, chunk, threads, make, [](auto&) {});
}

}  // namespace transposable
