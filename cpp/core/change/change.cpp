#include "change.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <string_view>

#include "../approx/elements.hpp"
#include "../isa.hpp"
#include "../parallel.hpp"

namespace transposable {

extern const ChangeRun change_run_baseline;
#if defined(TRANSPOSABLE_X86)
extern const ChangeRun change_run_avx2, change_run_avx512;
#endif

namespace {

constexpr std::int64_t kPiece = 1 << 13;  // elements of a run at a time: they stay in the cache
constexpr std::int64_t kShare = 1 << 18;  // elements, roughly, that a thread takes at a time

ChangeRun active_run() {
#if defined(TRANSPOSABLE_X86)
  const std::string_view isa = active_engine().name;
  if (isa == "avx512") return change_run_avx512;
  if (isa == "avx2") return change_run_avx2;
#endif
  return change_run_baseline;
}

// The same elements with as few axes as possible, in the order in which the weight lies in memory:
// a contiguous tensor of any number of dimensions becomes a single run.
std::vector<ChangeAxis> merged(std::vector<ChangeAxis> axes) {
  std::erase_if(axes, [](const ChangeAxis& axis) { return axis.size == 1; });
  std::stable_sort(axes.begin(), axes.end(), [](const ChangeAxis& a, const ChangeAxis& b) {
    return std::abs(a.weight) > std::abs(b.weight);
  });
  std::vector<ChangeAxis> result;
  for (const ChangeAxis& inner : axes) {
    const bool follows = !result.empty() && result.back().weight == inner.weight * inner.size &&
                         result.back().mask == inner.mask * inner.size &&
                         result.back().found == inner.found * inner.size;
    if (follows) {
      const std::int64_t outer = result.back().size;
      result.back() = inner;
      result.back().size *= outer;
    } else {
      result.push_back(inner);
    }
  }
  if (result.empty()) result.push_back({1, 1, 1, 1});
  return result;
}

// Where an element lies in the three tensors.
struct Place {
  std::int64_t weight = 0, mask = 0, found = 0;

  void step(const ChangeAxis& axis, std::int64_t count) {
    weight += axis.weight * count;
    mask += axis.mask * count;
    found += axis.found * count;
  }
};

class Walk {
 public:
  explicit Walk(const ChangeJob& job) : job_(job), axes_(merged(job.axes)), run_(axes_.back()) {
    axes_.pop_back();
    pieces_ = (run_.size + kPiece - 1) / kPiece;
    for (const ChangeAxis& axis : axes_) runs_ *= axis.size;
    contiguous_ = run_.weight == 1 && run_.mask == 1 && run_.found == 1;
  }

  std::int64_t pieces() const { return runs_ * pieces_; }
  std::int64_t piece_size() const { return std::min(run_.size, kPiece); }

  void compare(std::int64_t piece, MaskChange& sums) const {
    Place at;
    std::int64_t index = piece / pieces_;
    for (auto axis = axes_.rbegin(); axis != axes_.rend(); ++axis) {
      at.step(*axis, index % axis->size);
      index /= axis->size;
    }
    const std::int64_t first = piece % pieces_ * kPiece;
    at.step(run_, first);
    const int count = static_cast<int>(std::min(kPiece, run_.size - first));
    const std::uint8_t* const mask = job_.mask + at.mask;
    const std::uint8_t* const found = job_.found + at.found;
    with_elements({job_.weight, job_.dtype, 0, 0, 0, 0, 0, 0, true}, [&](const auto* weight) {
      const auto* const from = weight + at.weight;
      if (contiguous_) return kernel_(from, job_.dtype, mask, found, count, sums);
      for (std::int64_t c = 0; c < count; ++c) {
        const double x = std::fabs(widen(from[c * run_.weight]));
        const std::uint8_t now = found[c * run_.found];
        sums.flips += now != mask[c * run_.mask];
        sums.kept += now ? x : 0;
        sums.total += x;
      }
    });
  }

 private:
  const ChangeJob& job_;
  std::vector<ChangeAxis> axes_;  // the outer ones
  ChangeAxis run_;                // the innermost
  std::int64_t runs_ = 1, pieces_ = 1;
  bool contiguous_;
  ChangeRun kernel_ = active_run();
};

}  // namespace

MaskChange compare_masks(const ChangeJob& job, int threads) {
  for (const ChangeAxis& axis : job.axes)
    if (axis.size == 0) return {};
  const Walk walk(job);
  const std::int64_t chunk = std::max<std::int64_t>(1, kShare / walk.piece_size());
  // A place for each chunk, added up in their order: the sums are those of one thread.
  std::vector<MaskChange> parts(static_cast<std::size_t>((walk.pieces() + chunk - 1) / chunk));
  parallel_chunks(walk.pieces(), chunk, threads, [&] {
    return [&](std::int64_t begin, std::int64_t end) {
      MaskChange sums;
      for (std::int64_t piece = begin; piece < end; ++piece) walk.compare(piece, sums);
      parts[static_cast<std::size_t>(begin / chunk)] = sums;
    };
  });
  MaskChange total;
  for (const MaskChange& part : parts) {
    total.flips += part.flips;
    total.kept += part.kept;
    total.total += part.total;
  }
  return total;
}

}  // namespace transposable
