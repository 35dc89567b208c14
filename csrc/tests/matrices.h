// Random packed matrices and what they mean, read from gemworks/ops/layout.py's drawing and not with csrc/layout.h.
#pragma once

#include <cstdint>
#include <vector>

#include "check.h"
#include "kernels.h"

namespace gemworks::test {

constexpr Format kFormats[] = {Format::kInt4B32, Format::kInt4, Format::kInt8B32, Format::kInt8, Format::kSfp8, Format::kBf16};
const char* NameOf(Format format);

// A packed matrix with random codes and scales of both signs, and zeros where rows and columns are padded.
class RandomMatrix {
 public:
  RandomMatrix(Format format, int rows, int cols, uint64_t seed);

  Matrix matrix() const { return {data_.as<uint8_t>(), format_, rows_, cols_}; }
  // The weight it stands for, and its scale by itself: weight = code * scale.
  double Weight(int row, int col) const { return Code(row, col) * Scale(row, col); }
  double Code(int row, int col) const;
  double Scale(int row, int col) const;

 private:
  const uint8_t* Unit(int row, int col) const;
  void FillCodes(Random& random);
  void FillScales(Random& random);

  Format format_;
  int rows_, cols_;
  Memory data_;
};

// A product and how far an fp32 sum of its terms, one after another, may be from it.
struct Bounded {
  double value, bound;
};

// Row `row` of the matrix times the activations. Formats of integers see them rounded to int8 in blocks of 32, as
// csrc/activations.inl describes.
Bounded Multiply(const RandomMatrix& weight, int row, const float* x, int cols, Format format);

}  // namespace gemworks::test
