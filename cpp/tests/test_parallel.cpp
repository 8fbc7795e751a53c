// Every index once, whatever the counts; the first exception reaches the caller.
#include "core/parallel.hpp"

#include <atomic>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.hpp"

namespace {

using transposable::parallel_chunks;

void covers_every_index_once() {
  for (std::int64_t count : {0, 1, 2, 7, 64, 1000})
    for (std::int64_t chunk : {1, 3, 64, 5000})
      for (int threads : {-1, 0, 1, 2, 5, 100}) {
        std::vector<std::atomic<int>> seen(static_cast<std::size_t>(count));
        std::atomic<bool> sound{true};
        parallel_chunks(count, chunk, threads, [&] {
          return [&](std::int64_t begin, std::int64_t end) {
            if (begin >= end || end > count || end - begin > chunk) sound = false;
            for (auto i = begin; i < end; ++i) ++seen[static_cast<std::size_t>(i)];
          };
        });
        CHECK(sound);
        for (auto& times : seen) CHECK_EQUAL(times.load(), 1);
      }
}

void builds_one_worker_for_each_thread() {
  std::atomic<int> made{0};
  parallel_chunks(1000, 1, 3, [&] {
    ++made;
    return [](std::int64_t, std::int64_t) {};
  });
  CHECK_EQUAL(made.load(), 3);
  made = 0;
  parallel_chunks(2, 1, 8, [&] {  // no more threads than chunks
    ++made;
    return [](std::int64_t, std::int64_t) {};
  });
  CHECK_EQUAL(made.load(), 2);
}

void rethrows() {
  for (int threads : {1, 4}) {
    std::atomic<std::int64_t> done{0};
    std::string text;
    try {
      parallel_chunks(100000, 1, threads, [&] {
        return [&](std::int64_t begin, std::int64_t) {
          if (begin == 10) throw std::runtime_error("at ten");
          ++done;
        };
      });
    } catch (const std::runtime_error& error) {
      text = error.what();
    }
    CHECK(text == "at ten");
    CHECK(done < 100000);
  }
}

}  // namespace

int main() {
  covers_every_index_once();
  builds_one_worker_for_each_thread();
  rethrows();
  return check::result("test_parallel");
}
