// Arrays between pages that must not be touched: to read or write there ends the test.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <vector>

#include "check.hpp"

// A copy of some numbers that ends where a forbidden page begins, or begins where one ends.
template <class T>
class Guarded {
 public:
  enum class Side { end, start };

  explicit Guarded(const std::vector<T>& from, Side side = Side::end) {
    const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE)), bytes = from.size() * sizeof(T);
    const std::size_t room = (bytes + page - 1) / page * page;
    length_ = page + room + page;
    base_ = static_cast<char*>(
        mmap(nullptr, length_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    CHECK(base_ != MAP_FAILED);
    CHECK(mprotect(base_, page, PROT_NONE) == 0);
    CHECK(mprotect(base_ + page + room, page, PROT_NONE) == 0);
    data_ = reinterpret_cast<T*>(base_ + page + (side == Side::end ? room - bytes : 0));
    if (bytes) std::memcpy(data_, from.data(), bytes);
  }
  ~Guarded() { munmap(base_, length_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  T* data() const { return data_; }
  T operator[](std::int64_t i) const { return data_[i]; }

 private:
  char* base_;
  T* data_;
  std::size_t length_;
};
