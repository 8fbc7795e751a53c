#include "row_wise.hpp"

#include <algorithm>

#include "parallel.hpp"

namespace transposable {

void row_wise(const Scores& scores, int n, int m, int threads, std::uint8_t* mask) {
  parallel_chunks(scores.batch * scores.rows, 16, threads, [&] {
    return [&](std::int64_t begin, std::int64_t end) {
      double values[64];
      for (std::int64_t line = begin; line < end; ++line) {
        const std::int64_t b = line / scores.rows, r = line % scores.rows;
        for (std::int64_t c0 = 0; c0 < scores.cols; c0 += m) {
          const int length = static_cast<int>(std::min<std::int64_t>(m, scores.cols - c0));
          std::uint8_t* out = mask + line * scores.cols + c0;
          for (int j = 0; j < length; ++j) values[j] = scores.at(b, r, c0 + j);
          for (int j = 0; j < length; ++j) {
            int better = 0;  // scores that come before this one
            for (int k = 0; k < length; ++k)
              better += values[k] > values[j] || (values[k] == values[j] && k < j);
            out[j] = better < n && (length == m || values[j] >= 0);
          }
        }
      }
    };
  });
}

}  // namespace transposable
