// Where the samples of a product come from and where its results go.
#pragma once

#include <cstdint>

#include "kernels.hpp"

namespace transposable {

class SampleSource {
 public:
  virtual ~SampleSource() = default;
  // Channels [first, last) of samples [sample, sample + samples) into a panel, as SparseKernels::pack.
  virtual void pack(std::int64_t sample, std::int64_t samples, std::int64_t first, std::int64_t last,
                    float* panel, std::int64_t width, std::int64_t stride) const = 0;
};

class SampleSink {
 public:
  virtual ~SampleSink() = default;
  // The panel of channels [first, last) of samples [sample, sample + samples).
  virtual void unpack(const float* panel, std::int64_t width, std::int64_t sample,
                      std::int64_t samples, std::int64_t first, std::int64_t last) const = 0;
};

inline const void* advanced(const void* data, DType dtype, std::int64_t elements) {
  return static_cast<const char*>(data) + elements * (dtype == DType::bf16 ? 2 : 4);
}
inline void* advanced(void* data, DType dtype, std::int64_t elements) {
  return static_cast<char*>(data) + elements * (dtype == DType::bf16 ? 2 : 4);
}

// Rows of a matrix.
class RowSource final : public SampleSource {
 public:
  explicit RowSource(const SampleRows& rows) : rows_(rows) {}
  void pack(std::int64_t sample, std::int64_t samples, std::int64_t first, std::int64_t last,
            float* panel, std::int64_t width, std::int64_t stride) const override {
    active_sparse_kernels().pack(
        {advanced(rows_.data, rows_.dtype, sample * rows_.stride), rows_.dtype, rows_.stride},
        samples, first, last, panel, width, stride);
  }

 private:
  SampleRows rows_;
};

class RowSink final : public SampleSink {
 public:
  explicit RowSink(const OutputRows& rows) : rows_(rows) {}
  void unpack(const float* panel, std::int64_t width, std::int64_t sample, std::int64_t samples,
              std::int64_t first, std::int64_t last) const override {
    active_sparse_kernels().unpack(
        panel, width, samples, first, last,
        {advanced(rows_.data, rows_.dtype, sample * rows_.stride), rows_.dtype, rows_.stride});
  }

 private:
  OutputRows rows_;
};

}  // namespace transposable
