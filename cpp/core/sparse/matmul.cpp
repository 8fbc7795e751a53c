#include "matmul.hpp"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <new>
#include <string_view>

#include "../isa.hpp"
#include "../parallel.hpp"

namespace transposable {

extern const SparseKernels sparse_kernels_baseline;
#if defined(TRANSPOSABLE_X86)
extern const SparseKernels sparse_kernels_avx2, sparse_kernels_avx512;
#endif

const SparseKernels& active_sparse_kernels() {
#if defined(TRANSPOSABLE_X86)
  const std::string_view isa = active_engine().name;
  if (isa == "avx512") return sparse_kernels_avx512;
  if (isa == "avx2") return sparse_kernels_avx2;
#endif
  return sparse_kernels_baseline;
}

namespace {

constexpr std::int64_t kSums = 256 << 10;  // bytes of sums that wait for their next column block
constexpr std::int64_t kWeights = 384 << 10;  // bytes of the stream that panels in turn are multiplied with
constexpr std::int64_t kPacked = 4 << 20;  // bytes of samples that a thread packs at once
constexpr int kShortBlock = 256;           // columns
// Samples at hand for the weight gradient: what should stay in the L2 cache.
constexpr std::int64_t kSlab = 512 << 10;  // bytes

struct Free {
  void operator()(float* p) const { std::free(p); }
};
using Floats = std::unique_ptr<float[], Free>;

Floats floats(std::int64_t count) {
  const std::size_t bytes = (static_cast<std::size_t>(count) * sizeof(float) + 63) / 64 * 64;
  void* p = std::aligned_alloc(64, std::max<std::size_t>(bytes, 64));
  if (!p) throw std::bad_alloc();
  return Floats(static_cast<float*>(p));
}

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

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

template <class T>
const void* at(const void* data, std::int64_t offset) {
  return static_cast<const T*>(data) + offset;
}
const void* advanced(const void* data, DType dtype, std::int64_t offset) {
  return dtype == DType::bf16 ? at<std::uint16_t>(data, offset) : at<float>(data, offset);
}
SampleRows from_sample(const SampleRows& x, std::int64_t sample) {
  return {advanced(x.data, x.dtype, sample * x.stride), x.dtype, x.stride};
}
OutputRows from_sample(const OutputRows& y, std::int64_t sample) {
  return {const_cast<void*>(advanced(y.data, y.dtype, sample * y.stride)), y.dtype, y.stride};
}

class Product {
 public:
  Product(const StreamView& stream, const void* values, DType dtype, const SampleRows& x,
          const float* bias, const OutputRows& y, std::int64_t samples)
      : kernels_(active_sparse_kernels()), stream_(stream), shape_(stream.shape), values_(values),
        dtype_(dtype), x_(x), y_(y),
        panels_(samples, kernels_.lanes,
                shape_.row_block == 8 ? kernels_.vectors8 : kernels_.vectors4),
        chunk_rows_(std::max(kernels_.lanes, shape_.row_block)),
        row_chunks_(ceil_div(shape_.rows, chunk_rows_)), bias_(floats(row_chunks_ * chunk_rows_)) {
    std::fill_n(bias_.get(), row_chunks_ * chunk_rows_, 0.0f);
    if (bias) std::copy_n(bias, shape_.rows, bias_.get());
  }

  void run(int threads) const {
    const std::int64_t packed = kPacked / (shape_.cols * widest() * 4);
    std::int64_t at_once = std::clamp<std::int64_t>(packed / together() * together(), together(),
                                                    panels_.count);
    at_once = std::min(at_once, ceil_div(panels_.count, threads));
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
      for (std::int64_t p = first; p < last; ++p)
        product_.kernels_.pack(from_sample(product_.x_, product_.panels_.first_sample(p)),
                               product_.panels_.valid(p), 0, product_.shape_.cols, x_of(p),
                               width(p), width(p));
    }

    void add(std::int64_t first, std::int64_t last, std::int64_t col_block, std::int64_t chunk,
             std::int64_t end) {
      const auto& shape = product_.shape_;
      const std::int64_t top = chunk * product_.chunk_rows_;
      const std::int64_t bottom = std::min(shape.rows, end * product_.chunk_rows_);
      for (std::int64_t row = top; row < bottom; row += shape.row_block) {
        const std::int64_t b = col_block * shape.row_blocks() + row / shape.row_block;
        const void* values = advanced(product_.values_, product_.dtype_,
                                      product_.stream_.value_starts[b]);
        for (std::int64_t p = first; p < last; ++p)
          product_.kernels_.multiply(
              shape.row_block, product_.panels_.width_in_vectors(p), product_.dtype_,
              {product_.stream_.block(b), values, x_of(p) + col_block * shape.col_block * width(p),
               y_of(p - first) + (row - top) * width(p),
               col_block == 0 ? product_.bias_.get() + row : nullptr});
      }
    }

    void unpack(std::int64_t first, std::int64_t last, std::int64_t chunk, std::int64_t end) {
      const std::int64_t top = chunk * product_.chunk_rows_;
      const std::int64_t bottom = std::min(product_.shape_.rows, end * product_.chunk_rows_);
      for (std::int64_t p = first; p < last; ++p)
        product_.kernels_.unpack(y_of(p - first), width(p), product_.panels_.valid(p), top, bottom,
                                 from_sample(product_.y_, product_.panels_.first_sample(p)));
    }

    const Product& product_;
    std::int64_t x_distance_, y_distance_;
    Floats x_, y_;
    std::int64_t packed_ = -1;  // the panel that x begins with
  };

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
    return std::clamp<std::int64_t>(std::min(kSums / sums, kWeights / (weights + 1)), 1, row_chunks_);
  }

  const SparseKernels& kernels_;
  const StreamView& stream_;
  const StreamShape& shape_;
  const void* values_;
  DType dtype_;
  SampleRows x_;
  OutputRows y_;
  Panels panels_;
  std::int64_t chunk_rows_;  // of a square to unpack, and whole blocks
  std::int64_t row_chunks_;
  Floats bias_;
};

void fill_with_bias(const OutputRows& y, const float* bias, std::int64_t rows, std::int64_t samples,
                    const SparseKernels& kernels) {
  // No column: a panel of the bias alone.
  Floats panel = floats(rows * kernels.lanes);
  for (std::int64_t r = 0; r < rows; ++r)
    std::fill_n(panel.get() + r * kernels.lanes, kernels.lanes, bias ? bias[r] : 0.0f);
  for (std::int64_t s = 0; s < samples; s += kernels.lanes)
    kernels.unpack(panel.get(), kernels.lanes, std::min<std::int64_t>(kernels.lanes, samples - s), 0,
                   rows, from_sample(y, s));
}

// Channels of some samples one after the other, `stride` apart, filled up with zeros to `width`.
void pack_channels(const SampleRows& x, std::int64_t samples, std::int64_t channels, float* to,
                   std::int64_t width, std::int64_t stride, int threads,
                   const SparseKernels& kernels) {
  constexpr std::int64_t kChannels = 64;
  parallel_chunks(ceil_div(channels, kChannels), 1, threads, [&] {
    return [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t k = begin; k < end; ++k) {
        const std::int64_t first = k * kChannels, last = std::min(channels, first + kChannels);
        kernels.pack(x, samples, first, last, to + first * stride, width, stride);
      }
    };
  });
}

}  // namespace

double peak_gflops(double seconds) {
  using Clock = std::chrono::steady_clock;
  const auto begin = Clock::now();
  const auto since = [](Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  double best = 0;
  do {
    float sums[64];
    const auto start = Clock::now();
    const double operations = active_sparse_kernels().multiply_adds(200000, sums);
    best = std::max(best, operations / since(start) / 1e9);
  } while (since(begin) < seconds);
  return best;
}

std::pair<int, int> stream_blocking(int m) {
  // Blocks of 8 rows reuse a sample more often, but from M = 16 on nearly all their 255 types occur,
  // each too rarely for its loop. Long blocks have long runs, whose ends are foreseen more often; with
  // the few types of 4 rows runs are long anyway, and a short block keeps its samples in the L1 cache.
  if (active_sparse_kernels().vectors8 == 1 || m >= 16) return {4, 128};
  return {8, 2048};
}

void stream_matmul(const StreamView& stream, const void* values, DType dtype, const SampleRows& x,
                   const float* bias, const OutputRows& y, std::int64_t samples, int threads) {
  if (samples == 0 || stream.shape.rows == 0) return;
  if (stream.shape.cols == 0)
    return fill_with_bias(y, bias, stream.shape.rows, samples, active_sparse_kernels());
  Product(stream, values, dtype, x, bias, y, samples).run(std::max(threads, 1));
}

void stream_weight_gradient(const StreamView& stream, const SampleRows& x, const SampleRows& dy,
                            std::int64_t samples, float* out, int threads) {
  const SparseKernels& kernels = active_sparse_kernels();
  const StreamShape& shape = stream.shape;
  const std::int64_t entries = shape.rows * shape.cols;
  if (samples == 0 || entries == 0) {
    std::fill_n(out, entries, 0.0f);
    return;
  }
  // Where few rows share a column, sums over more samples pay, with fewer columns at hand.
  const std::int64_t kept = stream.value_starts[shape.blocks()];
  const std::int64_t most = kept < 3 * ceil_div(shape.rows, shape.row_block) * shape.cols ? 1024 : 512;
  const std::int64_t chunk = std::min(most, ceil_div(samples, kernels.lanes) * kernels.lanes);
  const std::int64_t at_hand = std::min<std::int64_t>(512, kSlab / (chunk * sizeof(float)));
  // A distance that is no power of two: else all channels fall on the same few lines of the cache.
  const std::int64_t stride = chunk + kernels.lanes;
  const Floats columns = floats(shape.cols * stride);
  const Floats rows = floats(shape.row_blocks() * shape.row_block * stride);
  std::vector<std::uint16_t> taken(stream.index_starts[shape.blocks()]);
  for (std::int64_t first = 0; first < samples; first += chunk) {
    const std::int64_t valid = std::min(chunk, samples - first);
    const std::int64_t width = ceil_div(valid, kernels.lanes) * kernels.lanes;
    pack_channels(from_sample(x, first), valid, shape.cols, columns.get(), width, stride, threads,
                  kernels);
    pack_channels(from_sample(dy, first), valid, shape.rows, rows.get(), width, stride, threads,
                  kernels);
    std::fill(taken.begin(), taken.end(), std::uint16_t{0});
    const std::int64_t share = ceil_div(shape.row_blocks(), 2 * threads);
    parallel_chunks(shape.row_blocks(), share, threads, [&] {
      return [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t block = 0; block < shape.col_blocks(); ++block) {
          const std::int64_t left = block * shape.col_block;
          const std::int64_t wide = std::min<std::int64_t>(shape.col_block, shape.cols - left);
          for (std::int64_t column = 0; column < wide; column += at_hand) {
            const std::int64_t beyond = std::min(column + at_hand, wide);
            for (std::int64_t row = begin; row < end; ++row) {
              const std::int64_t b = block * shape.row_blocks() + row, top = row * shape.row_block;
              float* const corner = out + top * shape.cols + left;
              const std::int64_t height = std::min<std::int64_t>(shape.row_block, shape.rows - top);
              if (first == 0)
                for (std::int64_t r = 0; r < height; ++r)
                  std::fill_n(corner + r * shape.cols + column, beyond - column, 0.0f);
              // What the next block writes to, on its way while this one computes.
              for (std::int64_t r = height; r < std::min(2 * height, shape.rows - top); ++r)
                for (std::int64_t c = column; c < beyond; c += 16)
                  __builtin_prefetch(corner + r * shape.cols + c, 1);
              kernels.gradient({stream.block(b), taken.data() + stream.index_starts[b],
                                static_cast<int>(beyond), columns.get() + left * stride,
                                rows.get() + top * stride, stride, static_cast<int>(width), corner,
                                shape.cols, first > 0});
            }
          }
        }
      };
    });
  }
}

}  // namespace transposable
