#include "image.hpp"

#include <algorithm>

namespace transposable {
namespace {

std::int64_t floor_div(std::int64_t a, std::int64_t b) { return a / b - (a % b < 0); }

// Lanes [begin, end) of a vector, whose first is lane `first` of the panel.
std::uint32_t lanes_between(std::int64_t begin, std::int64_t end, std::int64_t first) {
  const std::uint64_t one = 1;
  return static_cast<std::uint32_t>((one << (end - first)) - (one << (begin - first)));
}

}  // namespace

ImageSource::ImageSource(const Images& images, const Window& window, std::int64_t out_height,
                         std::int64_t out_width)
    : images_(images), window_(window), out_height_(out_height), out_width_(out_width),
      together_(images.channel_stride == 1 && images.channels > 1) {
  const bool every_pixel = window.height * window.width == 1 && window.row_stride == 1 &&
                           window.col_stride == 1 && window.row_padding == 0 &&
                           window.col_padding == 0 && out_height == images.height &&
                           out_width == images.width;
  are_rows_ = together_ && every_pixel && images.row_stride == images.width * images.pixel_stride &&
              (images.batch <= 1 || images.image_stride == images.height * images.row_stride);
  if (together_) zeros_.assign(static_cast<std::size_t>(images.channels), 0);
}

std::vector<ImageSource::Run> ImageSource::runs_of(std::int64_t sample, std::int64_t samples) const {
  std::vector<Run> runs;
  std::int64_t col = sample % out_width_, row = sample / out_width_ % out_height_;
  std::int64_t image = sample / out_width_ / out_height_;
  for (std::int64_t place = 0; place < samples;) {
    const std::int64_t count = std::min(out_width_ - col, samples - place);
    runs.push_back({image, row, col, count, place});
    place += count;
    col = 0;
    if (++row == out_height_) row = 0, ++image;
  }
  return runs;
}

ImageSource::Met ImageSource::met(const Run& run, std::int64_t tap) const {
  const std::int64_t down = tap / window_.width, across = tap % window_.width;
  const std::int64_t stride = window_.col_stride;
  const std::int64_t row =
      run.row * window_.row_stride - window_.row_padding + down * window_.row_dilation;
  const std::int64_t col = run.col * stride - window_.col_padding + across * window_.col_dilation;
  if (row < 0 || row >= images_.height) return {run.place, run.place, 0};
  // 0 <= col + i stride < width
  const std::int64_t begin = std::clamp<std::int64_t>(-floor_div(col, stride), 0, run.count);
  const std::int64_t end =
      std::clamp<std::int64_t>(-floor_div(col - images_.width, stride), begin, run.count);
  return {run.place + begin, run.place + end,
          run.image * images_.image_stride + row * images_.row_stride +
              (col + begin * stride) * images_.pixel_stride};
}

void ImageSource::pack(std::int64_t sample, std::int64_t samples, std::int64_t first,
                       std::int64_t last, float* panel, std::int64_t width,
                       std::int64_t stride) const {
  const SparseKernels& kernels = active_sparse_kernels();
  const Images& x = images_;
  if (are_rows_)
    return kernels.pack({advanced(x.data, x.dtype, sample * x.pixel_stride), x.dtype, x.pixel_stride},
                        samples, first, last, panel, width, stride);
  const std::vector<Run> runs = runs_of(sample, samples);
  std::vector<const void*> rows(together_ ? static_cast<std::size_t>(width) : 0);
  std::vector<LanePixels> pixels;
  for (std::int64_t tap = first / x.channels; tap * x.channels < last; ++tap) {
    const std::int64_t begin = std::max<std::int64_t>(first - tap * x.channels, 0);
    const std::int64_t end = std::min(last - tap * x.channels, x.channels);
    float* const to = panel + (tap * x.channels + begin - first) * stride;
    if (together_) {
      std::fill(rows.begin(), rows.end(), zeros_.data());
      for (const Run& run : runs) {
        const Met hit = met(run, tap);
        for (std::int64_t s = hit.begin; s < hit.end; ++s)
          rows[static_cast<std::size_t>(s)] =
              advanced(x.data, x.dtype, hit.offset + (s - hit.begin) * step());
      }
      kernels.pack_gathered(rows.data(), x.dtype, begin, end, to, width, stride);
      continue;
    }
    pixels.clear();
    for (const Run& run : runs) {
      const Met hit = met(run, tap);
      for (std::int64_t s = hit.begin; s < hit.end;) {
        const std::int64_t vector = s / kernels.lanes, lane = vector * kernels.lanes;
        const std::int64_t beyond = std::min(hit.end, lane + kernels.lanes);
        const std::int64_t offset = hit.offset + (lane - hit.begin) * step();
        const std::uint32_t lanes = lanes_between(s, beyond, lane);
        // Rows that follow each other in memory are read at once.
        if (!pixels.empty() && pixels.back().vector == vector && pixels.back().offset == offset)
          pixels.back().lanes |= lanes;
        else
          pixels.push_back({offset, lanes, static_cast<std::int32_t>(vector)});
        s = beyond;
      }
    }
    kernels.pack_pixels(
        {advanced(x.data, x.dtype, begin * x.channel_stride), x.dtype, x.channel_stride, step()},
        pixels.data(), static_cast<std::int64_t>(pixels.size()), end - begin, to, width, stride);
  }
}

void ImageSink::unpack(const float* panel, std::int64_t width, std::int64_t sample,
                       std::int64_t samples, std::int64_t first, std::int64_t last) const {
  std::vector<PixelPiece> pieces;
  std::int64_t image = sample / pixels_, pixel = sample % pixels_;
  for (std::int64_t place = 0; place < samples; ++image, pixel = 0) {
    const std::int64_t count = std::min(pixels_ - pixel, samples - place);
    pieces.push_back({place, count, image * channels_ * pixels_ + pixel});
    place += count;
  }
  active_sparse_kernels().unpack_pixels(panel, width, pieces.data(),
                                        static_cast<std::int64_t>(pieces.size()), last - first,
                                        {advanced(data_, dtype_, first * pixels_), dtype_, pixels_});
}

}  // namespace transposable
