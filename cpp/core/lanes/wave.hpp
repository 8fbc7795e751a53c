// The full tiles of a strip, in waves of one block of lanes each.
//
//   wave     16-bit dual rounds on neighbouring tiles; most are proved optimal here
//   tied     the same with noise on exact ties, where there are many; proved without the noise
//   compact  the others, gathered side by side and each scaled on its own: more 16-bit rounds
//   ties     what is left: 32-bit scores, exact choice among ties
//   finish   shortest augmenting paths, tile by tile
//
// Masks stay in bits until a few waves are complete, so that memory is written once, in order.
#pragma once

#include <vector>

#include "finish.hpp"
#include "rounds.hpp"
#include "staging.hpp"
#include "tied.hpp"

namespace transposable::TP_ISA {

template <int P>
class WaveSolver final : public LaneSolver {
 public:
  WaveSolver(const LaneJob& job, TileFallback& fallback)
      : job_(job),
        fallback_(fallback),
        m_(job.m),
        // Keeping more than half is pruning less than half: keep the m - n smallest, and invert.
        flip_(2 * job.n > job.m),
        n_(flip_ ? job.m - job.n : job.n),
        sign_{job.scores.magnitude ? 0x7fffffffu : 0xffffffffu, flip_ ? 0x80000000u : 0u},
        rounds_(Rounds<P>::choose(job.m == P ? n_ : 0)),
        mean_bits_(job.scores.magnitude ? 12 : 11),
        centre_(!job.scores.magnitude ? 0 : flip_ ? -5000 : 5000),
        down_((job.scores.rows + job.m - 1) / job.m),
        across_((job.scores.cols + job.m - 1) / job.m),
        direct_(job.scores.col_stride == 1) {
    lines_.allocate(static_cast<std::size_t>(P) * kLanes16 * P);
    if (!direct_ || job.scores.dtype != DType::f32) converted_.allocate(static_cast<std::size_t>(P) * kLanes16 * P);
  }

  void solve(std::int64_t first, std::int64_t last) override {
    const std::int64_t full = job_.scores.cols / m_;
    exponent_ = tied_ahead_ = 0;  // nothing is carried from call to call: masks do not depend on the threads
    for (std::int64_t strip = first; strip < last; ++strip) {
      const std::int64_t b = strip / down_, down = strip % down_;
      if ((down + 1) * m_ > job_.scores.rows) continue;
      stats_.tiles += full;
      std::int64_t at = 0;
      if (job_.scores.dtype != DType::f64)
        for (; at + kLanes16 <= full; at += kLanes16) {
          const bool next_follows = at + 2 * kLanes16 <= full;
          if (direct_ && job_.scores.dtype == DType::bf16)
            run_wave<BFloat16>(b, down, at, next_follows);
          else
            run_wave<float>(b, down, at, next_follows);
        }
      for (; at < full; ++at) {
        Entry& entry = add(compact_, b, down, at);
        entry.wave = -1;
        entry.warm = false;
        if (compact_.size() >= kPending) flush();
      }
    }
    flush();
  }

  const LaneStats& stats() const override { return stats_; }

 private:
  static constexpr int kWords = Block16<P>::kWords;
  static constexpr std::uint32_t kAllLanes = kLanes16 == 32 ? ~std::uint32_t{0} : (1u << kLanes16 % 32) - 1;
  static constexpr int kNoise = 400;
  static constexpr int kWaves = P <= 8 ? 32 : P <= 16 ? 16 : 8;
  static constexpr std::size_t kPending = 8 * kLanes16;

  struct Wave {
    I16 kept[P * kWords];
    std::int64_t b, down, across;
  };
  struct Entry {
    std::int64_t b, down, across;
    int wave, lane;
    bool warm;
    float v[P];  // in units of the scores
  };

  Entry& add(std::vector<Entry>& list, std::int64_t b, std::int64_t down, std::int64_t across) {
    list.emplace_back();
    Entry& entry = list.back();
    entry.b = b;
    entry.down = down;
    entry.across = across;
    return entry;
  }

  // The lines of a block: where they are, if they are of this type, or else converted.
  template <class Score>
  void find_lines(std::int64_t b, std::int64_t down, std::int64_t across, const Score** lines) {
    constexpr DType dtype = sizeof(Score) == 4 ? DType::f32 : DType::bf16;
    const int count = kLanes16 * m_;
    for (int i = 0; i < m_; ++i) {
      const std::int64_t row = down * m_ + i, col = across * m_;
      if (direct_ && job_.scores.dtype == dtype) {
        lines[i] = static_cast<const Score*>(job_.scores.data) + job_.scores.offset(b, row, col);
      } else if constexpr (dtype == DType::f32) {
        float* to = converted_.data() + i * count;
        convert_line(job_.scores, b, row, col, count, to);
        lines[i] = to;
      }
    }
  }

  // ---- wave ---------------------------------------------------------------------------------------

  template <class Score>
  void run_wave(std::int64_t b, std::int64_t down, std::int64_t across, bool next_follows) {
    if (waves_ == kWaves) flush();
    Wave& wave = wave_[waves_];
    wave.b = b;
    wave.down = down;
    wave.across = across;
    const Score* lines[P];
    find_lines(b, down, across, lines);
    const int count = kLanes16 * m_;
    if (tied_ahead_ > 0 && run_tied(wave)) {
      ++waves_;
      return;
    }
    // The scale of the last block will mostly do: one pass over memory instead of two.
    const bool usable = read_wave(lines, count) || read_wave(lines, count);
    const int exponent = exponent_;
    std::uint32_t proved = 0, tied = 0;
    if (usable) {
      guess_columns(block_, m_);
      constexpr int half_rounds = sizeof(Schedule<P>::wave) / sizeof(int);
      for (int k = 0; k < half_rounds; ++k) {
        if (next_follows) prefetch(b, down, across + kLanes16, k, half_rounds);
        rounds_.half[k % 2](block_, n_, m_, Schedule<P>::wave[k]);
      }
      const Verdict verdict = rounds_.select(block_, n_, m_);
      proved = verdict.proved;
      tied = verdict.tied & ~proved;
      if (m_ == P && tied_ahead_ == 0 && __builtin_popcount(tied) >= kLanes16 / 8 &&
          many_exact(lines[0], power_of_two(exponent - 1)) && run_tied(wave)) {
        ++waves_;
        return;
      }
      if (tied_ahead_ < 0) ++tied_ahead_;
      for (int e = 0; e < P * kWords; ++e) wave.kept[e] = block_.kept[e];
      stats_.wave += __builtin_popcount(proved);
      if (job_.u)
        for (std::uint32_t left = proved; left; left &= left - 1)
          write_potentials16(b, down, across + __builtin_ctz(left), __builtin_ctz(left), exponent);
    }
    for (std::uint32_t left = kAllLanes & ~proved; left; left &= left - 1) {
      const int lane = __builtin_ctz(left);
      Entry& entry = add(tied >> lane & 1 ? ties_ : compact_, b, down, across + lane);
      entry.wave = waves_;
      entry.lane = lane;
      entry.warm = usable;
      if (usable) save_v16(entry, lane, exponent);
    }
    ++waves_;
  }

  // ---- tied ---------------------------------------------------------------------------------------

  // False when the block is none for 16 bits.
  bool run_tied(Wave& wave) {
    const float* lines[P];
    find_lines(wave.b, wave.down, wave.across, lines);
    if (!read_wave(lines, kLanes16 * m_) && !read_wave(lines, kLanes16 * m_)) return false;
    const int exponent = exponent_ - 1, centre = centre_ / 2;
    read_tied<P>(tied_, lines, power_of_two(exponent), centre, sign_);
    perturb(tied_, block_, kNoise);
    guess_columns(block_, m_);
    for (int j = 0; j < P; ++j) block_.u[j] = I16{};
    constexpr int half_rounds = sizeof(Schedule<P>::wave) / sizeof(int);
    for (int k = 0; k < half_rounds; ++k) rounds_.half[k % 2](block_, n_, m_, Schedule<P>::wave[k]);
    const Verdict verdict = rounds_.select(block_, n_, m_);
    const std::uint32_t proved = prove_tied(tied_, block_, verdict.proved);
    // The next blocks go the same way while that pays; where it does not it is left alone for a while.
    if (4 * __builtin_popcount(proved) >= kLanes16)
      tied_ahead_ = tied_ahead_ > 0 ? tied_ahead_ - 1 : 15;
    else
      tied_ahead_ = -31;
    for (int e = 0; e < P * kWords; ++e) wave.kept[e] = block_.kept[e];
    stats_.wave += __builtin_popcount(proved);
    if (job_.u)
      for (std::uint32_t left = proved; left; left &= left - 1) {
        const int lane = __builtin_ctz(left);
        const double unit = double_power_of_two(-exponent);
        write_potentials(wave.b, wave.down, wave.across + lane,
                         [&](int i) { return (lane_of(tied_.u[i], lane) * 0.5 + centre) * unit; },
                         [&](int j) { return lane_of(tied_.v[j], lane) * 0.5 * unit; });
      }
    for (std::uint32_t left = kAllLanes & ~proved; left; left &= left - 1) {
      const int lane = __builtin_ctz(left);
      Entry& entry = add(ties_, wave.b, wave.down, wave.across + lane);
      entry.wave = waves_;
      entry.lane = lane;
      entry.warm = true;
      save_v16(entry, lane, exponent);
    }
    return true;
  }

  // ---- reading ------------------------------------------------------------------------------------

  // False when the scale did not fit, which is then mended as far as it can be: NaN, infinities and
  // extreme scales are left to the tiles one by one.
  template <class Score>
  bool read_wave(const Score* const* lines, int count) {
    const auto read = job_.scores.magnitude ? read_scores<P, true, Score> : read_scores<P, false, Score>;
    const float sum = read(block_, lines, m_, power_of_two(exponent_), centre_, sign_);
    // Looked at as bits: the compiler may assume that floats are finite here.
    const std::int32_t bits = float_bits(sum);
    if (bits == 0) return true;
    if (bits >= 0x7f800000 || bits < (127 - 80) << 23) return false;
    const float mean = sum / static_cast<float>(count * m_);
    const float scaled = mean * power_of_two(exponent_);
    const float wanted = static_cast<float>(1 << mean_bits_);
    if (scaled > 0.75f * wanted && scaled < 2.25f * wanted) return true;
    exponent_ = mean_bits_ - ((float_bits(mean) >> 23) - 127);
    return false;
  }

  // The next block of the strip, a share of its lines before each half round; of large tiles only the
  // first lines, since the lines of a wide matrix compete for the same places of the cache. Inlined by
  // force: a function that only prefetches has no effect in the eyes of GCC, which drops calls to it.
  TP_INLINE void prefetch(std::int64_t b, std::int64_t down, std::int64_t across, int part, int parts) {
    if (job_.scores.col_stride != 1) return;
    const int size = element_size(job_.scores.dtype), bytes = kLanes16 * m_ * size;
    const int ahead = m_ < 16 ? m_ : 16;
    for (int i = ahead * part / parts; i < ahead * (part + 1) / parts; ++i) {
      const char* line = static_cast<const char*>(job_.scores.data) +
                         job_.scores.offset(b, down * m_ + i, across * m_) * size;
      for (const char* at = line; at < line + bytes; at += 64) __builtin_prefetch(at, 0, 2);
    }
  }

  void save_v16(Entry& entry, int lane, int exponent) {
    const float unit = power_of_two(-exponent);
    for (int j = 0; j < m_; ++j) entry.v[j] = static_cast<float>(lane_of(block_.v[j], lane)) * unit;
  }

  static int lane_of(const I16& x, int lane) { return reinterpret_cast<const std::int16_t*>(&x)[lane]; }
  static int lane_of(const I32& x, int lane) { return reinterpret_cast<const std::int32_t*>(&x)[lane]; }

  // ---- compact ------------------------------------------------------------------------------------

  void run_compact(Entry* entries, int count) {
    const float* lines[P];
    float* staged[P];
    for (int i = 0; i < m_; ++i) lines[i] = staged[i] = lines_.data() + i * kLanes16 * m_;
    int exponents[kLanes16];
    bool used[kLanes16], cold = false;
    for (int lane = 0; lane < kLanes16; ++lane) {
      used[lane] = false;
      if (lane < count) {
        const TileKind kind = fetch(entries[lane]);
        if (kind == TileKind::special) fall_back(entries[lane]);
        if (kind == TileKind::zero) ties_.push_back(entries[lane]);
        used[lane] = kind == TileKind::usable;
      }
      const int up = used[lane] ? mean_bits_ - ((float_bits(tile_.mean) >> 23) - 127) : 0;
      exponents[lane] = up - tile_.exponent;
      if (!used[lane]) continue;  // what is left of an earlier tile does no harm
      cold |= !entries[lane].warm;
      tile_.copy_to(staged, lane, m_, power_of_two(up));
    }
    read_scores<P, false, float>(block_, lines, m_, 1.0f, centre_, SignRule{0xffffffffu, 0});
    for (int j = 0; j < P; ++j) block_.u[j] = block_.v[j] = I16{};
    for (int lane = 0; lane < count; ++lane)
      if (used[lane] && entries[lane].warm) {
        const double unit = double_power_of_two(exponents[lane]);
        for (int j = 0; j < m_; ++j)
          reinterpret_cast<std::int16_t*>(&block_.v[j])[lane] =
              static_cast<std::int16_t>(bounded(entries[lane].v[j] * unit, kBound));
      }
    if (cold)
      for (int k = 0; k < static_cast<int>(sizeof(Schedule<P>::wave) / sizeof(int)); ++k)
        rounds_.half[k % 2](block_, n_, m_, Schedule<P>::wave[k]);
    constexpr int more = Schedule<P>::more;
    for (int k = 0; k < more; ++k)
      rounds_.half[k % 2](block_, n_, m_, k == 0 ? 15 : k < more - 3 ? 1 : 2);
    const Verdict verdict = rounds_.select(block_, n_, m_);
    for (int lane = 0; lane < count; ++lane) {
      if (!used[lane]) continue;
      Entry& entry = entries[lane];
      if (verdict.proved >> lane & 1) {
        ++stats_.compacted;
        std::uint64_t rows[P];
        for (int i = 0; i < m_; ++i) {
          rows[i] = 0;
          for (int w = 0; w < kWords; ++w)
            rows[i] |= static_cast<std::uint64_t>(static_cast<std::uint16_t>(
                           lane_of(block_.kept[i * kWords + w], lane)))
                       << 16 * w;
        }
        commit(entry, rows);
        if (job_.u) write_potentials16(entry.b, entry.down, entry.across, lane, exponents[lane]);
      } else {
        entry.warm = true;
        const double unit = double_power_of_two(-exponents[lane]);
        for (int j = 0; j < m_; ++j)
          entry.v[j] = static_cast<float>(lane_of(block_.v[j], lane) * unit);
        ties_.push_back(entry);
      }
    }
  }

  // ---- ties and finish ----------------------------------------------------------------------------

  void run_ties(Entry* entries, int count) {
    const float* lines[P];
    float* staged[P];
    for (int i = 0; i < m_; ++i) lines[i] = staged[i] = lines_.data() + i * kLanes32 * m_;
    int exponents[kLanes32];
    bool used[kLanes32];
    constexpr int kUp = 24;  // [2, 4) becomes [2^25, 2^26)
    for (int j = 0; j < P; ++j) block32_.v[j] = I32{};
    for (int lane = 0; lane < kLanes32; ++lane) {
      used[lane] = false;
      if (lane < count) {
        const TileKind kind = fetch(entries[lane]);
        // A mean below 2^20 units would be too coarse.
        used[lane] = kind != TileKind::special && tile_.mean >= 0.0625f;
        if (!used[lane]) fall_back(entries[lane]);
      }
      exponents[lane] = kUp - tile_.exponent;
      if (!used[lane]) continue;
      tile_.copy_to(staged, lane, m_, power_of_two(kUp));
      if (entries[lane].warm) {
        const double unit = double_power_of_two(exponents[lane]);
        for (int j = 0; j < m_; ++j)
          reinterpret_cast<std::int32_t*>(&block32_.v[j])[lane] = bounded(entries[lane].v[j] * unit, kBound32);
      }
    }
    read_scores32<P>(block32_, lines, m_);
    Selection selection = select32<P>(block32_, n_, m_);
    if (selection.excess > count * (m_ / 8 + 1)) {  // the 16-bit potentials were far off
      for (int j = 0; j < P; ++j) block32_.u[j] = I32{};
      for (int k = 0; k < 6; ++k)
        (k % 2 ? half_round32<P, false> : half_round32<P, true>)(block32_, n_, m_);
      selection = select32<P>(block32_, n_, m_);
    }
    for (int lane = 0; lane < count; ++lane) {
      if (!used[lane]) continue;
      for (int i = 0; i < m_; ++i) {
        finish_.kept[i] = word_of(block32_.kept, i, lane);
        finish_.equal[i] = word_of(block32_.equal, i, lane);
      }
      for (int j = 0; j < m_; ++j) finish_.held[j] = lane_of(block32_.count[j], lane);
      bool settled = finish_.settle_ties(n_, m_);
      if (!settled || job_.u) {
        for (int j = 0; j < m_; ++j) finish_.v[j] = lane_of(block32_.v[j], lane);
        for (int i = 0; i < m_; ++i) finish_.set_row(i, staged[i] + lane * m_, m_);
        finish_.run(n_, m_, selection.tied >> lane & 1);
      }
      ++(settled ? stats_.ties : stats_.paths);
      commit(entries[lane], finish_.kept);
      if (job_.u) {
        const double unit = double_power_of_two(-exponents[lane]);
        write_potentials(entries[lane].b, entries[lane].down, entries[lane].across,
                         [&](int i) { return finish_.row_potential(i) * unit; },
                         [&](int j) { return finish_.v[j] * unit; });
      }
    }
  }

  static std::uint64_t word_of(const I32* words, int row, int lane) {
    std::uint64_t result = 0;
    for (int w = 0; w < Block32<P>::kWords; ++w)
      result |= static_cast<std::uint64_t>(static_cast<std::uint32_t>(lane_of(words[row * Block32<P>::kWords + w], lane)))
                << 32 * w;
    return result;
  }

  // ---- in and out ---------------------------------------------------------------------------------

  TileKind fetch(const Entry& entry) {
    return tile_.fetch(job_.scores, entry.b, entry.down * m_, entry.across * m_, m_, sign_);
  }

  static int bounded(double x, int bound) {
    return static_cast<int>(x > bound ? bound : x < -bound ? -bound : x);
  }

  void fall_back(const Entry& entry) {
    if (entry.wave >= 0) late_.push_back(entry);  // written once its wave is out
    else fallback_.solve(entry.b, entry.down, entry.across);
  }

  void commit(const Entry& entry, const std::uint64_t* rows) {
    if (entry.wave >= 0) {
      Wave& wave = wave_[entry.wave];
      for (int i = 0; i < m_; ++i)
        for (int w = 0; w < kWords; ++w)
          reinterpret_cast<std::int16_t*>(&wave.kept[i * kWords + w])[entry.lane] =
              static_cast<std::int16_t>(rows[i] >> 16 * w);
      return;
    }
    for (int i = 0; i < m_; ++i) {
      std::uint8_t* to = job_.mask + (entry.b * job_.scores.rows + entry.down * m_ + i) * job_.scores.cols +
                         entry.across * m_;
      for (int j = 0; j < m_; ++j) to[j] = static_cast<std::uint8_t>((rows[i] >> j & 1) ^ (flip_ ? 1 : 0));
    }
  }

  template <class U, class V>
  void write_potentials(std::int64_t b, std::int64_t down, std::int64_t across, U u, V v) {
    const std::int64_t at = ((b * down_ + down) * across_ + across) * m_;
    const double sign = flip_ ? -1 : 1;
    for (int i = 0; i < m_; ++i) job_.u[at + i] = sign * u(i);
    for (int j = 0; j < m_; ++j) job_.v[at + j] = sign * v(j);
  }
  void write_potentials16(std::int64_t b, std::int64_t down, std::int64_t across, int lane, int exponent) {
    const double unit = double_power_of_two(-exponent);
    write_potentials(b, down, across, [&](int i) { return (lane_of(block_.u[i], lane) + centre_ + 0.5) * unit; },
                     [&](int j) { return lane_of(block_.v[j], lane) * unit; });
  }

  void write_wave(const Wave& wave) {
    const int count = kLanes16 * m_;
    for (int i = 0; i < m_; ++i) {
      std::uint64_t bits[kLanes16 * P / 64 + 1];
      const I16* kept = wave.kept + i * kWords;
      if (P == 8 && m_ == 8) {
        typedef std::int8_t Bytes __attribute__((vector_size(TP_BYTES / 2)));
        const Bytes bytes = __builtin_convertvector(kept[0], Bytes);
        __builtin_memcpy(bits, &bytes, sizeof bytes);
      } else if (P == 16 && m_ == 16) {
        __builtin_memcpy(bits, kept, sizeof(I16));
      } else if (m_ == P && P >= 32) {
        I16 words[kWords];
        interleave<kWords>(kept, words);
        __builtin_memcpy(bits, words, sizeof words);
      } else {
        for (auto& word : bits) word = 0;
        for (int lane = 0, at = 0; lane < kLanes16; ++lane, at += m_) {
          std::uint64_t row = 0;
          for (int w = 0; w < kWords; ++w)
            row |= static_cast<std::uint64_t>(static_cast<std::uint16_t>(lane_of(kept[w], lane))) << 16 * w;
          bits[at / 64] |= row << at % 64;
          if (at % 64 + m_ > 64) bits[at / 64 + 1] |= row >> (64 - at % 64);
        }
      }
      if (flip_)
        for (auto& word : bits) word = ~word;
      write_bits(bits, count,
                 job_.mask + (wave.b * job_.scores.rows + wave.down * m_ + i) * job_.scores.cols +
                     wave.across * m_,
                 job_.stream);
    }
  }

  void flush() {
    for (std::size_t k = 0; k < compact_.size(); k += kLanes16) {
      const std::size_t left = compact_.size() - k;
      run_compact(compact_.data() + k, static_cast<int>(left < kLanes16 ? left : kLanes16));
    }
    compact_.clear();
    for (std::size_t k = 0; k < ties_.size(); k += kLanes32) {
      const std::size_t left = ties_.size() - k;
      run_ties(ties_.data() + k, static_cast<int>(left < kLanes32 ? left : kLanes32));
    }
    ties_.clear();
    for (int k = 0; k < waves_; ++k) write_wave(wave_[k]);
    waves_ = 0;
    for (const Entry& entry : late_) fallback_.solve(entry.b, entry.down, entry.across);
    late_.clear();
  }

  const LaneJob job_;
  TileFallback& fallback_;
  const int m_;
  const bool flip_;
  const int n_;
  const SignRule sign_;
  const Rounds<P> rounds_;
  // The mean magnitude becomes 2^mean_bits_ to twice that, and `centre_` about the middle of the
  // scores: thresholds are then small, which leaves room for finer steps.
  const int mean_bits_, centre_;
  const std::int64_t down_, across_;
  const bool direct_;
  LaneStats stats_;

  Block16<P> block_;
  Block32<P> block32_;
  TiedBlock<P> tied_;
  Finish<P> finish_;
  Tile<P> tile_;
  Wave wave_[kWaves];
  int exponent_ = 0;    // scores were last scaled by 2^exponent_
  int tied_ahead_ = 0;  // > 0: blocks to come that are taken to be full of ties; < 0: not to be
  int waves_ = 0;
  FloatArray lines_, converted_;
  std::vector<Entry> compact_, ties_, late_;
};

}  // namespace transposable::TP_ISA
