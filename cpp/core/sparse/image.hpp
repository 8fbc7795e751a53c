// Images as samples: a sample is a pixel of a convolution's output, its channels are the pixels under
// the window, all channels of the first tap, then those of the next.
#pragma once

#include <cstdint>
#include <vector>

#include "samples.hpp"

namespace transposable {

// Strides in elements, of any size.
struct Images {
  const void* data;
  DType dtype;
  std::int64_t batch, channels, height, width;
  std::int64_t image_stride, channel_stride, row_stride, pixel_stride;
};

// Tap (i, j) of output pixel (r, c) is input pixel (r stride - padding + i dilation, ...), and 0 if
// there is none. Padding and dilation may be negative: the input gradient walks its taps backwards.
struct Window {
  std::int64_t height, width;
  std::int64_t row_stride, col_stride;
  std::int64_t row_padding, col_padding;
  std::int64_t row_dilation, col_dilation;
};

class ImageSource final : public SampleSource {
 public:
  // Samples are the output pixels of the first image, row by row, then those of the next.
  ImageSource(const Images& images, const Window& window, std::int64_t out_height,
              std::int64_t out_width);
  void pack(std::int64_t sample, std::int64_t samples, std::int64_t first, std::int64_t last,
            float* panel, std::int64_t width, std::int64_t stride) const override;

 private:
  // Samples of a panel that are neighbours in one row of the output.
  struct Run {
    std::int64_t image, row, col, count, place;
  };
  // Where a tap of them meets the input: [begin, end) of the panel, from this element on.
  struct Met {
    std::int64_t begin, end, offset;
  };

  std::vector<Run> runs_of(std::int64_t sample, std::int64_t samples) const;
  Met met(const Run& run, std::int64_t tap) const;
  std::int64_t step() const { return window_.col_stride * images_.pixel_stride; }

  Images images_;
  Window window_;
  std::int64_t out_height_, out_width_;
  bool together_;  // the channels of a pixel lie together
  bool are_rows_;  // and the samples are the rows of a matrix
  std::vector<std::uint32_t> zeros_;  // the channels of a pixel that there is not
};

// Contiguous images whose channels lie apart.
class ImageSink final : public SampleSink {
 public:
  ImageSink(void* data, DType dtype, std::int64_t channels, std::int64_t pixels)
      : data_(data), dtype_(dtype), channels_(channels), pixels_(pixels) {}
  void unpack(const float* panel, std::int64_t width, std::int64_t sample, std::int64_t samples,
              std::int64_t first, std::int64_t last) const override;

 private:
  void* data_;
  DType dtype_;
  std::int64_t channels_, pixels_;
};

}  // namespace transposable
