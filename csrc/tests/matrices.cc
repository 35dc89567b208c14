#include "matrices.h"

#include <cmath>
#include <cstring>

namespace gemworks::test {
namespace {

bool HasBlocks(Format f) { return f == Format::kInt4B32 || f == Format::kInt8B32; }
bool IsFourBit(Format f) { return f == Format::kInt4B32 || f == Format::kInt4; }
bool IsFloat(Format f) { return f == Format::kSfp8 || f == Format::kBf16; }
int CodeBytes(Format f) { return IsFourBit(f) ? 8 * 64 : f == Format::kBf16 ? 32 * 64 : 16 * 64; }
int UnitsOf(int cols) { return (cols + 63) / 64; }
size_t PanelSize(Format f, int cols) {
  const size_t lines = HasBlocks(f) ? UnitsOf(cols) : f == Format::kBf16 ? 0 : 1;
  return static_cast<size_t>(UnitsOf(cols)) * CodeBytes(f) + lines * 64;
}

// Where the code of a column of a row lies in its unit, in bytes. Four-bit columns 16..31 of a block are high nibbles.
int CodeAt(Format f, int row, int col) {
  const int lane = row % 16, k = col % 64;
  if (f == Format::kBf16) return k / 2 * 64 + lane * 4 + k % 2 * 2;
  if (IsFourBit(f)) return (k / 32 * 4 + k % 16 / 4) * 64 + lane * 4 + k % 4;
  return k / 4 * 64 + lane * 4 + k % 4;
}

double Sfp8(uint8_t code) {
  const int c = code & 127;
  const double magnitude = c == 0   ? 0.0
                           : c < 64 ? std::ldexp(1 + (c & 3) / 4.0, (c >> 2) - 23)
                                    : std::ldexp(1 + (c & 7) / 8.0, (c >> 3) - 15);
  return code >> 7 ? -magnitude : magnitude;
}

}  // namespace

const char* NameOf(Format format) {
  constexpr const char* kNames[] = {"int4-b32", "int4", "int8-b32", "int8", "sfp8", "bf16"};
  return kNames[static_cast<int>(format)];
}

RandomMatrix::RandomMatrix(Format format, int rows, int cols, uint64_t seed)
    : format_(format), rows_(rows), cols_(cols), data_((rows + 15) / 16 * PanelSize(format, cols)) {
  std::memset(data_.as<uint8_t>(), 0, data_.bytes());
  Random random(seed);
  FillCodes(random);
  FillScales(random);
}

const uint8_t* RandomMatrix::Unit(int row, int col) const {
  const size_t unit_bytes = CodeBytes(format_) + (HasBlocks(format_) ? 64 : 0);
  return data_.as<uint8_t>() + row / 16 * PanelSize(format_, cols_) + col / 64 * unit_bytes;
}

void RandomMatrix::FillCodes(Random& random) {
  for (int row = 0; row < (rows_ + 15) / 16 * 16; ++row) {
    for (int col = 0; col < UnitsOf(cols_) * 64; ++col) {
      const bool exists = row < rows_ && col < cols_;
      uint8_t* at = const_cast<uint8_t*>(Unit(row, col)) + CodeAt(format_, row, col);
      if (format_ == Format::kBf16) {
        const uint16_t bits = exists ? static_cast<uint16_t>(BitsOf(random.Between(-2, 2)) >> 16) : 0;
        std::memcpy(at, &bits, 2);
      } else if (IsFourBit(format_)) {
        // The extremes more often than the rest: there sums overflow first.
        const int code = !exists ? 8 : random.Below(4) ? random.Below(16) : 15 * random.Below(2);
        *at = static_cast<uint8_t>(*at | code << (col % 32 < 16 ? 0 : 4));
      } else {
        const int zero = format_ == Format::kSfp8 ? 0 : 128;
        *at = static_cast<uint8_t>(!exists ? zero : random.Below(4) ? random.Below(256) : 255 * random.Below(2));
      }
    }
  }
}

void RandomMatrix::FillScales(Random& random) {
  if (format_ == Format::kBf16) return;
  for (int row = 0; row < rows_; ++row) {
    if (HasBlocks(format_)) {
      for (int col = 0; col < cols_; col += 32) {
        uint8_t* line = const_cast<uint8_t*>(Unit(row, col)) + CodeBytes(format_);
        // 2^-8 to 2^-3 with any fraction and sign; a zero now and then. One draw: the order of several is the compiler's.
        const uint32_t any = random.Bits();
        const uint32_t exponent = 7 + (any >> 16) % 5;
        const uint16_t bits = any >> 28 == 0 ? 0 : static_cast<uint16_t>((any & 0x83ff) | exponent << 10);
        std::memcpy(line + col % 64 / 32 * 32 + row % 16 * 2, &bits, 2);
      }
    } else {
      const float scale = random.Between(-0.05f, 0.1f);
      uint8_t* line = const_cast<uint8_t*>(Unit(row, 0)) + UnitsOf(cols_) * CodeBytes(format_);
      std::memcpy(line + row % 16 * 4, &scale, 4);
    }
  }
}

double RandomMatrix::Code(int row, int col) const {
  const uint8_t* at = Unit(row, col) + CodeAt(format_, row, col);
  if (format_ == Format::kBf16) {
    uint16_t bits;
    std::memcpy(&bits, at, 2);
    return FromBits(static_cast<uint32_t>(bits) << 16);
  }
  if (format_ == Format::kSfp8) return Sfp8(*at);
  return IsFourBit(format_) ? (col % 32 < 16 ? *at & 15 : *at >> 4) - 8 : *at - 128;
}

double RandomMatrix::Scale(int row, int col) const {
  if (format_ == Format::kBf16) return 1;
  if (HasBlocks(format_)) {
    uint16_t half;
    std::memcpy(&half, Unit(row, col) + CodeBytes(format_) + col % 64 / 32 * 32 + row % 16 * 2, 2);
    return HalfToFloat(half);
  }
  float scale;
  std::memcpy(&scale, Unit(row, 0) + UnitsOf(cols_) * CodeBytes(format_) + row % 16 * 4, 4);
  return scale;
}

Bounded Multiply(const RandomMatrix& weight, int row, const float* x, int cols, Format format) {
  double sum = 0, absolute = 0;
  for (int block = 0; block < cols; block += 32) {
    float largest = 0;
    for (int c = block; c < block + 32; ++c) largest = std::fmax(largest, std::fabs(x[c]));
    const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
    double terms = 0;
    for (int c = block; c < block + 32; ++c) {
      const double term = weight.Code(row, c) * (IsFloat(format) ? x[c] : std::nearbyint(x[c] * inverse));
      terms += term;
      if (IsFloat(format)) absolute += std::fabs(term * weight.Scale(row, c));
    }
    const double scaled = terms * weight.Scale(row, block) * (IsFloat(format) ? 1.0f : largest * (1.0f / 127.0f));
    sum += scaled;
    if (!IsFloat(format)) absolute += std::fabs(scaled);
  }
  // One rounding for each addition and three for the scales; sums of integers have none.
  const int roundings = (IsFloat(format) ? cols : cols / 32) + 3;
  return {sum, std::ldexp(absolute, -24) * roundings + 1e-37};
}

}  // namespace gemworks::test
