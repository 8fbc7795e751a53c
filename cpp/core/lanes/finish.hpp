// One tile to the end: shortest augmenting paths, the columns of the tile in the lanes.
//
// Start: potentials v and rows that each hold their n best of q - v. Columns that hold too much hand
// units over, along moves of one row from column a to column b that cost
//   (q_ia - v_a) - (q_ib - v_b) >= 0   for i with S_ia = 1, S_ib = 0.
// First along moves that cost nothing (ties), found by breadth-first search on bit masks; then along
// shortest paths (Dijkstra), which change the potentials. The row property is kept throughout, so
// that the mask is optimal once every column holds n.
//
// No overflow: |q| <= 2^26 and |v| <= 2^28 at the start. A column that holds more than another can
// always move a unit there directly, so a shortest path costs less than 2^27 plus a difference of
// potentials; hence potentials fall by less than 2^27 below the least start value, distances stay
// below 2^30 = kFar, and sums of two below 2^31.
#pragma once

#include "dual32.hpp"

namespace transposable::TP_ISA {

template <int P>
class Finish {
 public:
  static constexpr int kPieces = Row<P>::kPieces;
  static constexpr int kPieceLanes = Row<P>::kPieceLanes;
  using Piece = typename Row<P>::Ints;

  std::int32_t v[P];
  std::int32_t held[P];  // kept entries of each column
  std::uint64_t kept[P];

  // Scores of row i, from P floats of which m are real.
  TP_INLINE void set_row(int i, const float* scores, int m) {
    using Floats = typename Row<P>::Floats;
#pragma GCC unroll 16
    for (int p = 0; p < kPieces; ++p) {
      const Floats x = load<Floats>(scores + p * kPieceLanes);
      q_[i][p] = __builtin_convertvector(x + (x < Floats{} ? Floats{} - 0.5f : Floats{} + 0.5f), Piece);
    }
    for (int j = m; j < P; ++j) q_[i][j / kPieceLanes][j % kPieceLanes] = kNever32;
  }

  // Needs rows, kept, held and v; returns the number of paths.
  __attribute__((noinline)) int run(int n, int m, bool ties) {
    n_ = n;
    m_ = m;
    over_ = under_ = 0;
    for (int j = m; j < P; ++j) v[j] = 0;
    for (int j = 0; j < m; ++j) {
      if (held[j] > n) over_ |= std::uint64_t{1} << j;
      if (held[j] < n) under_ |= std::uint64_t{1} << j;
    }
    int paths = 0;
    bool split = false;
    while (over_) {
      if (ties) {
        const int found = move_along_ties();
        paths += found;
        split &= found == 0;
        if (!over_) break;
      }
      if (!split) split_rows();
      split = true;
      shortest_path();
      ++paths;
    }
    return paths;
  }

  // A u_i that proves row i: its greatest pruned q - v.
  std::int32_t row_potential(int i) const {
    std::int32_t greatest = kNever32;
    for (int j = 0; j < m_; ++j) {
      const std::int32_t x = q_[i][j / kPieceLanes][j % kPieceLanes] - v[j];
      if (!(kept[i] >> j & 1) && x > greatest) greatest = x;
    }
    return greatest;
  }

 private:
  static constexpr std::int32_t kFar = (1 << 30) - 1;

  static TP_INLINE std::uint64_t bits(Piece yes) {
#if TP_BYTES == 64
    if constexpr (sizeof(Piece) == 64) return _mm512_movepi32_mask(reinterpret_cast<__m512i>(yes));
    else return static_cast<std::uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(yes)));
#else
    return lane_bits(yes);
#endif
  }
  std::uint64_t columns() const { return ~std::uint64_t{0} >> (64 - m_); }
  TP_INLINE Piece potentials(int p) const { return load<Piece>(v + p * kPieceLanes); }

  // All lanes of the bits in `which`, as -1.
  static TP_INLINE Piece spread(std::uint64_t which) {
    Piece lane;
#pragma GCC unroll 16
    for (int k = 0; k < kPieceLanes; ++k) lane[k] = 1 << k;
    const Piece word = Piece{} + static_cast<std::int32_t>(which & ((std::uint64_t{1} << kPieceLanes) - 1));
    return (word & lane) == lane;
  }

  // Moves that cost nothing: within a row, between kept and pruned entries at the row's threshold.
  int move_along_ties() {
    std::uint64_t leave[P], enter[P];
    for (int i = 0; i < m_; ++i) {
      Piece x[kPieces], low = Piece{} + kFar;
#pragma GCC unroll 16
      for (int p = 0; p < kPieces; ++p) {
        x[p] = q_[i][p] - potentials(p);
        low = min(low, spread(kept[i] >> p * kPieceLanes) ? x[p] : Piece{} + kFar);
      }
      const std::int32_t threshold = reduce_min(low);
      std::uint64_t equal = 0;
#pragma GCC unroll 16
      for (int p = 0; p < kPieces; ++p) equal |= bits(x[p] == threshold) << p * kPieceLanes;
      equal &= columns();
      leave[i] = equal & kept[i];
      enter[i] = equal & ~kept[i];
    }
    int found = 0;
    std::uint8_t from_col[P], by_row[P];
    while (over_) {
      std::uint64_t seen = over_, frontier = over_, reached = 0;
      while (frontier && !(reached & under_)) {
        reached = 0;
        for (int i = 0; i < m_; ++i) {
          const std::uint64_t sources = leave[i] & frontier, fresh = enter[i] & ~seen;
          if (!sources || !fresh) continue;
          const int source = __builtin_ctzll(sources);
          for (std::uint64_t left = fresh; left; left &= left - 1) {
            const int j = __builtin_ctzll(left);
            from_col[j] = static_cast<std::uint8_t>(source);
            by_row[j] = static_cast<std::uint8_t>(i);
          }
          seen |= fresh;
          reached |= fresh;
        }
        frontier = reached;
      }
      if (!(reached & under_)) break;
      const int target = __builtin_ctzll(reached & under_);
      int to = target;
      while (!(over_ >> to & 1)) {
        const int row = by_row[to], from = from_col[to];
        const std::uint64_t change = (std::uint64_t{1} << from) | (std::uint64_t{1} << to);
        kept[row] ^= change;
        leave[row] ^= change;
        enter[row] ^= change;
        to = from;
      }
      transfer(to, target);
      ++found;
    }
    return found;
  }

  void transfer(int from, int to) {
    if (--held[from] == n_) over_ &= ~(std::uint64_t{1} << from);
    if (++held[to] == n_) under_ &= ~(std::uint64_t{1} << to);
  }

  // in_[i][j]: what row i gets by taking column j, -kFar where it holds it; out_[i][j]: what it gives
  // up by leaving column j, kFar where it does not hold it.
  void split_rows() {
    for (int i = 0; i < m_; ++i)
#pragma GCC unroll 16
      for (int p = 0; p < kPieces; ++p) {
        const Piece has = spread(kept[i] >> p * kPieceLanes);
        in_[i][p] = has ? Piece{} - kFar : q_[i][p];
        store(out_[i] + p * kPieceLanes, has ? q_[i][p] : Piece{} + kFar);
      }
  }

  void shortest_path() {
    const Piece far = Piece{} + kFar;
    Piece length[kPieces], previous[kPieces], price[kPieces];  // length: without the potential
#pragma GCC unroll 16
    for (int p = 0; p < kPieces; ++p) {
      price[p] = potentials(p);
      previous[p] = Piece{} - 1;
      length[p] = spread(over_ >> p * kPieceLanes) ? -price[p] : far;
    }
    std::uint64_t open = columns();
    std::int32_t reached;
    int target;
    for (;;) {
      Piece key[kPieces], low = Piece{} + 0x7fffffff;
#pragma GCC unroll 16
      for (int p = 0; p < kPieces; ++p) {
        key[p] = spread(open >> p * kPieceLanes) ? length[p] + price[p] : Piece{} + 0x7fffffff;
        low = min(low, key[p]);
      }
      const std::int32_t nearest = reduce_min(low);
      std::uint64_t at = 0;
#pragma GCC unroll 16
      for (int p = 0; p < kPieces; ++p) at |= bits(key[p] == nearest) << p * kPieceLanes;
      at &= open;
      if (at & under_) {
        target = __builtin_ctzll(at & under_);
        reached = nearest;
        break;
      }
      const int a = __builtin_ctzll(at);
      open &= ~(std::uint64_t{1} << a);
      Piece cost[kPieces];
#pragma GCC unroll 16
      for (int p = 0; p < kPieces; ++p) cost[p] = far;
      for (int i = 0; i < m_; ++i) {
        const Piece give = Piece{} + out_[i][a];
#pragma GCC unroll 16
        for (int p = 0; p < kPieces; ++p) cost[p] = min(cost[p], give - in_[i][p]);
      }
      const Piece base = Piece{} + (nearest - v[a]);
#pragma GCC unroll 16
      for (int p = 0; p < kPieces; ++p) {
        const Piece candidate = min(cost[p] + base, far);
        const Piece better = (candidate < length[p]) & spread(open >> p * kPieceLanes);
        length[p] = better ? candidate : length[p];
        previous[p] = better ? Piece{} + a : previous[p];
      }
    }
    std::int32_t lengths[P], from_col[P];
#pragma GCC unroll 16
    for (int p = 0; p < kPieces; ++p) {
      store(lengths + p * kPieceLanes, length[p]);
      store(from_col + p * kPieceLanes, previous[p]);
      store(v + p * kPieceLanes, price[p] - min(length[p] + price[p], Piece{} + reached));
    }
    for (int j = m_; j < P; ++j) v[j] = 0;
    int to = target;
    while (from_col[to] >= 0) {
      const int from = from_col[to];
      // A row whose move has just this cost; all are tried, which costs less than a wrong guess.
      const std::int32_t cost = lengths[to] - lengths[from];
      std::uint64_t rows = 0;
      for (int i = 0; i < m_; ++i)
        rows |= static_cast<std::uint64_t>(out_[i][from] - in(i, to) == cost) << i;
      const int row = __builtin_ctzll(rows);
      set(row, from, false);
      set(row, to, true);
      to = from;
    }
    transfer(to, target);
  }

  // Row `row` cannot leave a column it does not hold, nor enter one it holds: out - in is then beyond
  // every cost.
  std::int32_t in(int row, int col) const { return reinterpret_cast<const std::int32_t*>(in_[row])[col]; }
  std::int32_t score(int row, int col) const { return q_[row][col / kPieceLanes][col % kPieceLanes]; }
  void set(int row, int col, bool value) {
    kept[row] ^= std::uint64_t{1} << col;
    in_[row][col / kPieceLanes][col % kPieceLanes] = value ? -kFar : score(row, col);
    out_[row][col] = value ? score(row, col) : kFar;
  }

  int n_ = 0, m_ = 0;
  std::uint64_t over_ = 0, under_ = 0;
  Piece q_[P][kPieces], in_[P][kPieces];
  std::int32_t out_[P][P];
};

}  // namespace transposable::TP_ISA
