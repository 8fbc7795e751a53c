#include "kept_tile.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <stdexcept>

namespace transposable {

namespace {

// Eight bits as eight bytes of 0 or 1, in memory order.
constexpr auto kBytes = [] {
  std::array<std::array<std::uint8_t, 8>, 256> table{};
  for (unsigned bits = 0; bits < 256; ++bits)
    for (unsigned b = 0; b < 8; ++b) table[bits][b] = bits >> b & 1;
  return table;
}();

std::uint64_t low_bits(int count) {
  return count == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << count) - 1;
}

template <class F>
void for_bits(std::uint64_t bits, F f) {
  for (; bits; bits &= bits - 1) f(std::countr_zero(bits));
}

}  // namespace

void KeptTile::clear(int m) {
  std::fill_n(row, m, 0);
  std::fill_n(in_row, m, 0);
  std::fill_n(in_col, m, 0);
}

void KeptTile::to_lane(std::int32_t* kept, int lane, int m) const {
  for (int i = 0; i < m; ++i)
    for (int j = 0; j < m; ++j)
      kept[(i * m + j) * kLanes + lane] = -static_cast<int>(row[i] >> j & 1);
}

void KeptTile::from_lane(const std::int32_t* kept, int lane, int m) {
  std::fill_n(in_col, m, 0);
  for (int i = 0; i < m; ++i) {
    row[i] = 0;
    for (int j = 0; j < m; ++j) {
      const int bit = kept[(i * m + j) * kLanes + lane] & 1;
      row[i] |= static_cast<std::uint64_t>(bit) << j;
      in_col[j] += bit;
    }
    in_row[i] = std::popcount(row[i]);
  }
}

void KeptTile::write(const TilePlace& p, const Scores& scores, std::uint8_t* mask) const {
  std::uint8_t* out = mask + (p.batch * scores.rows + p.row) * scores.cols + p.col;
  for (int i = 0; i < p.rows; ++i, out += scores.cols) {
    int j = 0;
    for (; j + 8 <= p.cols; j += 8) std::memcpy(out + j, kBytes[row[i] >> j & 0xff].data(), 8);
    for (; j < p.cols; ++j) out[j] = row[i] >> j & 1;
  }
}

void fill_heavy(const TileBlock& block, int lane, int n, KeptTile& kept) {
  const TilePlace& p = block.place(lane);
  int row_room[64], col_room[64];
  int open_rows = 0, open_cols = 0;  // lines with room
  for (int i = 0; i < p.rows; ++i) open_rows += (row_room[i] = n - kept.in_row[i]) > 0;
  for (int j = 0; j < p.cols; ++j) open_cols += (col_room[j] = n - kept.in_col[j]) > 0;
  const TileBlock::Ranking ranking = block.ranking(lane);
  for (int rank = ranking.count() - 1; rank >= 0 && open_rows && open_cols; --rank) {
    const auto [i, j, negative] = ranking[rank];
    if (negative && !p.full) break;
    // Without a branch: whether an entry is taken cannot be predicted.
    const int take = (row_room[i] > 0) & (col_room[j] > 0) & !kept.has(i, j);
    kept.row[i] |= static_cast<std::uint64_t>(take) << j;
    row_room[i] -= take;
    col_room[j] -= take;
    open_rows -= take & (row_room[i] == 0);
    open_cols -= take & (col_room[j] == 0);
  }
  for (int i = 0; i < p.rows; ++i) kept.in_row[i] = n - row_room[i];
  for (int j = 0; j < p.cols; ++j) kept.in_col[j] = n - col_room[j];
}

// Let row i and column l lack an entry. Where (i, l) is not kept, it is added. Else some row k
// holds n entries without l and one of its columns j is not in row i (row k holds more than row i
// does): keep (i, j) and (k, l), drop (k, j). Row k is full, since otherwise (k, l) would have been
// filled.
void complete(const TileBlock& block, int lane, int n, KeptTile& kept) {
  const int m = block.m();
  for (int i = 0; i < m; ++i)
    while (kept.in_row[i] < n) {
      int best_k = -1, best_j = -1, best_l = -1;
      float best = -std::numeric_limits<float>::infinity();
      for (int l = 0; l < m; ++l) {
        if (kept.in_col[l] >= n) continue;
        if (!kept.has(i, l)) {
          best_k = i, best_j = best_l = l;
          break;
        }
        for (int k = 0; k < m; ++k) {
          if (kept.has(k, l)) continue;
          const float gain_l = block.value(lane, k, l);
          for_bits(kept.row[k] & ~kept.row[i], [&](int j) {
            const float gain = gain_l + block.value(lane, i, j) - block.value(lane, k, j);
            if (gain > best) best = gain, best_k = k, best_j = j, best_l = l;
          });
        }
      }
      if (best_k < 0)
        throw std::logic_error("complete: no exchange exists; the tile was not filled");
      if (best_k != i) {
        kept.drop(best_k, best_j);
        kept.keep(best_k, best_l);
      }
      kept.keep(i, best_j);
    }
}

void polish_cropped(const TileBlock& block, int lane, int n, int sweeps, KeptTile& kept) {
  const TilePlace& p = block.place(lane);
  auto value = [&](int i, int j) { return block.value(lane, i, j); };
  for (int i = 0; i < p.rows; ++i)
    for_bits(kept.row[i], [&](int j) {
      if (value(i, j) < 0) kept.drop(i, j);
    });
  for (int sweep = 0; sweep < sweeps; ++sweep) {
    bool changed = false;
    for (int i = 0; i < p.rows; ++i)
      for_bits(low_bits(p.cols) & ~kept.row[i], [&](int l) {
        const float gain = value(i, l);
        if (!(gain > 0)) return;
        const bool row_room = kept.in_row[i] < n, col_room = kept.in_col[l] < n;
        if (row_room && col_room) {
          kept.keep(i, l);
          changed = true;
          return;
        }
        // One entry has to go: the least one of the full row, or of the full column.
        int least_i = -1, least_j = -1;
        float least = gain;
        if (col_room)
          for_bits(kept.row[i], [&](int j) {
            if (value(i, j) < least) least = value(i, j), least_i = i, least_j = j;
          });
        if (row_room)
          for (int k = 0; k < p.rows; ++k)
            if (kept.has(k, l) && value(k, l) < least)
              least = value(k, l), least_i = k, least_j = l;
        if (least_i < 0) return;
        kept.drop(least_i, least_j);
        kept.keep(i, l);
        changed = true;
      });
    if (!changed) return;
  }
}

}  // namespace transposable
