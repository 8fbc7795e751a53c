// CHECK for tests: a failure names its place and its values; the test's main returns failures().
#pragma once

#include <iostream>

namespace check {

inline int& failures() {
  static int count = 0;
  return count;
}

inline void report(const char* file, int line, const char* what) {
  if (++failures() <= 20) std::cerr << file << ':' << line << ": " << what << " is false\n";
}

template <class A, class B>
void report_equal(const char* file, int line, const char* what, const A& a, const B& b) {
  if (++failures() <= 20)
    std::cerr << file << ':' << line << ": " << what << ": " << +a << " is not " << +b << '\n';
}

inline int result(const char* name) {
  if (failures()) std::cerr << name << ": " << failures() << " checks failed\n";
  return failures() ? 1 : 0;
}

}  // namespace check

#define CHECK(condition) \
  ((condition) ? void() : check::report(__FILE__, __LINE__, #condition))
#define CHECK_EQUAL(a, b)                                        \
  ((a) == (b) ? void()                                           \
              : check::report_equal(__FILE__, __LINE__, #a " == " #b, a, b))
