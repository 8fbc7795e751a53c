// The full 4 x 4 tiles of a strip: tile4.hpp on neighbours.
#pragma once

#include "staging.hpp"
#include "tile4.hpp"

namespace transposable::TP_ISA {

class Strip4Solver final : public LaneSolver {
 public:
  Strip4Solver(const LaneJob& job, TileFallback& fallback)
      : job_(job),
        fallback_(fallback),
        flip_(job.n == 3),
        sign_{job.scores.magnitude ? 0x7fffffffu : 0xffffffffu, flip_ ? 0x80000000u : 0u},
        down_((job.scores.rows + 3) / 4),
        across_((job.scores.cols + 3) / 4) {}

  void solve(std::int64_t first, std::int64_t last) override {
    const std::int64_t full = job_.scores.cols / 4;
    const bool contiguous = job_.scores.col_stride == 1;
    for (std::int64_t strip = first; strip < last; ++strip) {
      const std::int64_t b = strip / down_, down = strip % down_;
      if ((down + 1) * 4 > job_.scores.rows) continue;
      stats_.tiles += full;
      for (std::int64_t at = 0; at < full; at += kLanes32) {
        const int tiles = static_cast<int>(full - at < kLanes32 ? full - at : kLanes32);
        if (contiguous && tiles == kLanes32 && job_.scores.dtype == DType::f32) {
          run_direct<float>(b, down, at);
        } else if (contiguous && tiles == kLanes32 && job_.scores.dtype == DType::bf16) {
          run_direct<BFloat16>(b, down, at);
        } else {
          const float* lines[4];
          stage(b, down, at, tiles, lines);
          run(lines, job_.scores.dtype == DType::f64 ? SignRule{0xffffffffu, 0} : sign_, b, down, at, tiles);
        }
      }
    }
  }

  const LaneStats& stats() const override { return stats_; }

 private:
  static constexpr int kAhead = 1536;  // bytes

  template <class Score>
  void run_direct(std::int64_t b, std::int64_t down, std::int64_t at) {
    const Score* lines[4];
    for (int i = 0; i < 4; ++i)
      lines[i] = static_cast<const Score*>(job_.scores.data) + job_.scores.offset(b, down * 4 + i, at * 4);
    // Past the end of a line this reads what comes soon, or nothing.
    for (int i = 0; i < 4; ++i)
      for (int k = 0; k < 4 * kLanes32 * static_cast<int>(sizeof(Score)); k += 64)
        __builtin_prefetch(reinterpret_cast<const char*>(lines[i]) + kAhead + k, 0, 3);
    run(lines, sign_, b, down, at, kLanes32);
  }

  void stage(std::int64_t b, std::int64_t down, std::int64_t at, int tiles, const float** lines) {
    for (int i = 0; i < 4; ++i) lines[i] = lines_[i];
    if (job_.scores.dtype == DType::f64) {
      // Each double tile is scaled before it is rounded to float; see Tile::fetch.
      for (int t = 0; t < tiles; ++t) {
        const TileKind kind = tile_.fetch(job_.scores, b, down * 4, (at + t) * 4, 4, sign_);
        exponents_[t] = tile_.exponent;
        for (int e = 0; e < 16; ++e)
          lines_[e / 4][4 * t + e % 4] = kind == TileKind::special ? float_of_bits(0x7fc00000) : tile_.x[e];
      }
    } else {
      for (int t = 0; t < tiles; ++t) exponents_[t] = 0;
      for (int i = 0; i < 4; ++i) convert_line(job_.scores, b, down * 4 + i, at * 4, tiles * 4, lines_[i]);
    }
    for (int i = 0; i < 4; ++i)
      for (int k = tiles * 4; k < kLanes32 * 4; ++k) lines_[i][k] = 0;
    staged_ = true;
  }

  template <class Score>
  void run(const Score* const* lines, SignRule sign, std::int64_t b, std::int64_t down, std::int64_t at, int tiles) {
    std::uint32_t special = read_scores4(block_, lines, sign);
    if (n() == 2)
      solve4<2>(block_, flip_);
    else
      solve4<1>(block_, flip_);
    for (int i = 0; i < 4; ++i) {
      std::uint8_t* to = job_.mask + (b * job_.scores.rows + down * 4 + i) * job_.scores.cols + at * 4;
      write(to, block_.words[i], tiles);
    }
    special &= tiles == 32 ? ~0u : (1u << tiles) - 1;
    stats_.wave += tiles - __builtin_popcount(special);
    if (job_.u)
      for (int t = 0; t < tiles; ++t)
        if (!(special >> t & 1)) write_potentials(b, down, at, t);
    for (; special; special &= special - 1) fallback_.solve(b, down, at + __builtin_ctz(special));
    staged_ = false;
  }

  int n() const { return flip_ ? 1 : job_.n; }

  void write(std::uint8_t* to, I32 words, int tiles) {
    if (tiles < kLanes32) {
      __builtin_memcpy(to, &words, static_cast<std::size_t>(tiles) * 4);
      return;
    }
#if TP_BYTES == 64
    if (job_.stream && (reinterpret_cast<std::uintptr_t>(to) & 63) == 0) {
      _mm512_stream_si512(reinterpret_cast<__m512i*>(to), reinterpret_cast<__m512i>(words));
      return;
    }
#elif TP_BYTES == 32
    if (job_.stream && (reinterpret_cast<std::uintptr_t>(to) & 31) == 0) {
      _mm256_stream_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(words));
      return;
    }
#endif
    store(to, words);
  }

  // Potentials of an optimal mask: v_a <= v_b + (q_ia - q_ib) wherever row i keeps a and not b, by
  // Bellman-Ford; then u_i is the greatest pruned q - v.
  void write_potentials(std::int64_t b, std::int64_t down, std::int64_t at, int t) {
    std::int32_t q[4][4], v[4] = {0, 0, 0, 0};
    bool kept[4][4];
    for (int i = 0; i < 4; ++i)
      for (int j = 0; j < 4; ++j) {
        q[i][j] = block_.q[4 * i + j][t];
        kept[i][j] = ((block_.words[i][t] >> 8 * j & 1) != 0) != flip_;
      }
    for (int round = 0; round < 4; ++round)
      for (int i = 0; i < 4; ++i)
        for (int a = 0; a < 4; ++a)
          for (int c = 0; c < 4; ++c)
            if (kept[i][a] && !kept[i][c] && v[a] > v[c] + q[i][a] - q[i][c]) v[a] = v[c] + q[i][a] - q[i][c];
    const int exponent = block_.exponent[t] - 153 + (staged_ ? exponents_[t] : 0);
    const double unit = (flip_ ? -1 : 1) * double_power_of_two(exponent);
    const std::int64_t to = ((b * down_ + down) * across_ + at + t) * 4;
    for (int i = 0; i < 4; ++i) {
      std::int32_t greatest = -2147483647;
      for (int j = 0; j < 4; ++j)
        if (!kept[i][j] && q[i][j] - v[j] > greatest) greatest = q[i][j] - v[j];
      job_.u[to + i] = greatest * unit;
      job_.v[to + i] = v[i] * unit;
    }
  }

  const LaneJob job_;
  TileFallback& fallback_;
  const bool flip_;
  const SignRule sign_;
  const std::int64_t down_, across_;
  LaneStats stats_;
  Block4 block_;
  Tile<4> tile_;
  bool staged_ = false;
  int exponents_[kLanes32];
  alignas(64) float lines_[4][4 * kLanes32];
};

}  // namespace transposable::TP_ISA
