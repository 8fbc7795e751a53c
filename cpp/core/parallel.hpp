// Dynamic chunks over a few threads; the first exception is rethrown in the caller.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace transposable {

// Calls work(begin, end) on chunks of [0, count) until none is left. `make` builds one worker for
// each thread: make() -> work. One thread runs in the caller, without starting any.
template <class Make>
void parallel_chunks(std::int64_t count, std::int64_t chunk, int threads, Make make) {
  const std::int64_t chunks = (count + chunk - 1) / chunk;
  threads = static_cast<int>(std::clamp<std::int64_t>(threads, 1, std::max<std::int64_t>(chunks, 1)));
  std::atomic<std::int64_t> next{0};
  std::exception_ptr failure;
  std::mutex failure_guard;
  auto run = [&] {
    try {
      auto work = make();
      for (;;) {
        const std::int64_t begin = next.fetch_add(chunk, std::memory_order_relaxed);
        if (begin >= count) break;
        work(begin, std::min(begin + chunk, count));
      }
    } catch (...) {
      next.store(count, std::memory_order_relaxed);
      const std::lock_guard lock(failure_guard);
      if (!failure) failure = std::current_exception();
    }
  };
  {
    std::vector<std::jthread> others;
    for (int t = 1; t < threads; ++t) others.emplace_back(run);
    run();
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace transposable
