// The product of a compressed matrix with samples.
#include <algorithm>
#include <vector>

#include "../parallel.hpp"
#include "matmul.hpp"
#include "run.hpp"
#include "workspace.hpp"

namespace transposable {
namespace {

constexpr std::int64_t kSums = 256 << 10;  // bytes of sums that wait for their next column block
constexpr std::int64_t kWeights = 384 << 10;  // bytes of the stream that panels in turn are multiplied with
constexpr std::int64_t kPacked = 4 << 20;  // bytes of samples that a thread packs at once
constexpr int kShortBlock = 256;           // columns
constexpr std::int64_t kStrip = 256;       // rows that the samples of a short block are fetched for, at least

// Samples shared out to panels of nearly equal width.
struct Panels {
  std::int64_t samples, vectors, count;
  int lanes;

  Panels(std::int64_t samples_, int lanes_, int most)
      : samples(samples_), vectors(ceil_div(samples_, lanes_)), count(ceil_div(vectors, most)),
        lanes(lanes_) {}
  // Wider ones first, so that those which a block is multiplied with in turn are mostly alike.
  std::int64_t first_vector(std::int64_t p) const {
    return p * (vectors / count) + std::min(p, vectors % count);
  }
  int width_in_vectors(std::int64_t p) const {
    return static_cast<int>(first_vector(p + 1) - first_vector(p));
  }
  std::int64_t first_sample(std::int64_t p) const { return first_vector(p) * lanes; }
  std::int64_t valid(std::int64_t p) const {
    return std::min(samples, first_sample(p + 1)) - first_sample(p);
  }
};

class Product {
 public:
  Product(const StreamView& stream, const void* values, DType dtype, const SampleSource& x,
          const float* bias, const SampleSink& y, std::int64_t samples)
      : kernels_(active_sparse_kernels()), stream_(stream), shape_(stream.shape), values_(values),
        dtype_(dtype), x_(x), y_(y),
        panels_(samples, kernels_.lanes,
                shape_.row_block == 8 ? kernels_.vectors8 : kernels_.vectors4),
        chunk_rows_(std::max(kernels_.lanes, shape_.row_block)),
        row_chunks_(ceil_div(shape_.rows, chunk_rows_)), bias_(floats(row_chunks_ * chunk_rows_)),
        copied_(first_to_copy(stream)) {
    std::fill_n(bias_.get(), row_chunks_ * chunk_rows_, 0.0f);
    if (bias) std::copy_n(bias, shape_.rows, bias_.get());
    last_blocks_.assign(stream_.block(copied_), stream_.block(shape_.blocks()));
    last_blocks_.resize(last_blocks_.size() + kColumnsAhead);
  }

  void run(int threads) const {
    const std::int64_t packed = kPacked / (shape_.cols * widest() * 4);
    std::int64_t at_once = std::clamp<std::int64_t>(packed / together() * together(), together(),
                                                    panels_.count);
    at_once = std::min(at_once, ceil_div(panels_.count, threads));
    // Equal shares: the whole stream is read for each, however few its panels.
    at_once = ceil_div(panels_.count, ceil_div(panels_.count, at_once));
    at_once = std::min(ceil_div(at_once, together()) * together(), panels_.count);
    const std::int64_t groups = ceil_div(panels_.count, at_once);
    // Rows are shared out too when there are not samples enough to keep all threads at work.
    const std::int64_t parts =
        threads == 1 || groups % threads == 0 || groups >= 8 * threads
            ? 1
            : std::min<std::int64_t>(row_chunks_, ceil_div(4 * threads, groups));
    parallel_chunks(groups * parts, 1, threads, [&] {
      return [&, worker = Worker(*this, at_once)](std::int64_t begin, std::int64_t end) mutable {
        for (std::int64_t item = begin; item < end; ++item) {
          const std::int64_t group = item / parts, part = item % parts;
          worker.run(group * at_once, std::min(panels_.count, (group + 1) * at_once),
                     row_chunks_ * part / parts, row_chunks_ * (part + 1) / parts);
        }
      };
    });
  }

 private:
  // What a thread needs: the packed samples of the panels at hand, and the sums of some rows.
  class Worker {
   public:
    Worker(const Product& product, std::int64_t panels)
        : product_(product), x_distance_(product.shape_.cols * product.widest()),
          y_distance_(product.strip() * product.chunk_rows_ * product.widest()),
          x_(floats(panels * x_distance_)), y_(floats(product.together() * y_distance_)) {}

    void run(std::int64_t first, std::int64_t last, std::int64_t chunk, std::int64_t end) {
      if (first != packed_) pack(first, last);
      const std::int64_t strip = product_.strip(), blocks = product_.shape_.col_blocks();
      for (; chunk < end; chunk += strip) {
        const std::int64_t beyond = std::min(end, chunk + strip);
        for (std::int64_t p = first; p < last; p += product_.together()) {
          const std::int64_t next = std::min(last, p + product_.together());
          for (std::int64_t block = 0; block < blocks; ++block) add(p, next, block, chunk, beyond);
          unpack(p, next, chunk, beyond);
        }
      }
    }

   private:
    std::int64_t width(std::int64_t panel) const {
      return product_.panels_.width_in_vectors(panel) * product_.kernels_.lanes;
    }
    float* x_of(std::int64_t panel) const { return x_.get() + (panel - packed_) * x_distance_; }
    float* y_of(std::int64_t place) const { return y_.get() + place * y_distance_; }

    void pack(std::int64_t first, std::int64_t last) {
      packed_ = first;
      packed_end_ = last;
      for (std::int64_t p = first; p < last; ++p)
        product_.x_.pack(product_.panels_.first_sample(p), product_.panels_.valid(p), 0,
                         product_.shape_.cols, x_of(p), width(p), width(p));
    }

    // The samples that follow on those of a column block.
    const float* after(std::int64_t panel, std::int64_t col_block) const {
      if (col_block + 1 < product_.shape_.col_blocks())
        return x_of(panel) + (col_block + 1) * product_.shape_.col_block * width(panel);
      return x_of(panel + 1 < packed_end_ ? panel + 1 : packed_);
    }

    void add(std::int64_t first, std::int64_t last, std::int64_t col_block, std::int64_t chunk,
             std::int64_t end) {
      const auto& shape = product_.shape_;
      const std::int64_t top = chunk * product_.chunk_rows_;
      const std::int64_t bottom = std::min(shape.rows, end * product_.chunk_rows_);
      const std::int64_t above = col_block * shape.row_blocks();
      const std::int64_t beyond = above + ceil_div(bottom, shape.row_block);
      for (std::int64_t b = above + top / shape.row_block, next; b < beyond; b = next) {
        // Panels that take turns do so after every block.
        next = last - first > 1 ? b + 1 : product_.end_of_index(b, beyond);
        const void* values = advanced(product_.values_, product_.dtype_,
                                      product_.stream_.value_starts[b]);
        const std::int64_t row = (b - above) * shape.row_block;
        for (std::int64_t p = first; p < last; ++p)
          product_.kernels_.multiply(
              shape.row_block, product_.panels_.width_in_vectors(p), product_.dtype_,
              {next - b, product_.index(b), has_byte_columns(shape), values,
               x_of(p) + col_block * shape.col_block * width(p),
               y_of(p - first) + (row - top) * width(p), after(p, col_block),
               col_block == 0 ? product_.bias_.get() + row : nullptr});
      }
    }

    void unpack(std::int64_t first, std::int64_t last, std::int64_t chunk, std::int64_t end) {
      const std::int64_t top = chunk * product_.chunk_rows_;
      const std::int64_t bottom = std::min(product_.shape_.rows, end * product_.chunk_rows_);
      for (std::int64_t p = first; p < last; ++p)
        product_.y_.unpack(y_of(p - first), width(p), product_.panels_.first_sample(p),
                           product_.panels_.valid(p), top, bottom);
    }

    const Product& product_;
    std::int64_t x_distance_, y_distance_;
    Floats x_, y_;
    std::int64_t packed_ = -1, packed_end_ = -1;  // the panels that x holds
  };

  // The first of the blocks so near the end of the index that reading ahead would go beyond it.
  static std::int64_t first_to_copy(const StreamView& stream) {
    std::int64_t b = stream.shape.blocks();
    const std::int64_t end = stream.index_starts[b];
    while (b > 0 && stream.index_starts[b] + kColumnsAhead > end) --b;
    return b;
  }
  // Up to where the index of blocks follows on that of b, at most to `end`.
  std::int64_t end_of_index(std::int64_t b, std::int64_t end) const {
    return b < copied_ ? std::min(end, copied_) : end;
  }
  const std::uint16_t* index(std::int64_t b) const {
    if (b < copied_) return stream_.block(b);
    return last_blocks_.data() + (stream_.index_starts[b] - stream_.index_starts[copied_]);
  }

  // Samples of the widest panel.
  std::int64_t widest() const { return ceil_div(panels_.vectors, panels_.count) * kernels_.lanes; }

  // Panels that a block is multiplied with before the next one: the processor then foresees how long
  // runs are. Where a block is small, its channels stay in the L1 cache instead, from one block of
  // rows to the next.
  std::int64_t together() const { return shape_.col_block <= kShortBlock ? 1 : 2; }

  // Chunks of rows whose sums are held until all columns have been added. Then they are written a few
  // samples at a time from end to end: single squares here and there would wait for memory each time.
  std::int64_t strip() const {
    const std::int64_t sums = chunk_rows_ * widest() * together() * 4;
    const std::int64_t weights = stream_.value_starts[shape_.blocks()] / row_chunks_ * 5;
    const std::int64_t least = together() == 1 ? kStrip / chunk_rows_ : 1;
    const std::int64_t most = std::min(kSums / sums, std::max(kWeights / (weights + 1), least));
    return std::clamp<std::int64_t>(most, 1, row_chunks_);
  }

  const SparseKernels& kernels_;
  const StreamView& stream_;
  const StreamShape& shape_;
  const void* values_;
  DType dtype_;
  const SampleSource& x_;
  const SampleSink& y_;
  Panels panels_;
  std::int64_t chunk_rows_;  // of a square to unpack, and whole blocks
  std::int64_t row_chunks_;
  Floats bias_;
  std::int64_t copied_;  // first of the blocks below
  std::vector<std::uint16_t> last_blocks_;
};

void fill_with_bias(const SampleSink& y, const float* bias, std::int64_t rows, std::int64_t samples,
                    const SparseKernels& kernels) {
  // No column: a panel of the bias alone.
  Floats panel = floats(rows * kernels.lanes);
  for (std::int64_t r = 0; r < rows; ++r)
    std::fill_n(panel.get() + r * kernels.lanes, kernels.lanes, bias ? bias[r] : 0.0f);
  for (std::int64_t s = 0; s < samples; s += kernels.lanes)
    y.unpack(panel.get(), kernels.lanes, s, std::min<std::int64_t>(kernels.lanes, samples - s), 0,
             rows);
}

}  // namespace

void stream_matmul(const StreamView& stream, const void* values, DType dtype, const SampleSource& x,
                   const float* bias, const SampleSink& y, std::int64_t samples, int threads) {
  if (samples == 0 || stream.shape.rows == 0) return;
  if (stream.shape.cols == 0)
    return fill_with_bias(y, bias, stream.shape.rows, samples, active_sparse_kernels());
  Product(stream, values, dtype, x, bias, y, samples).run(std::max(threads, 1));
}

}  // namespace transposable
