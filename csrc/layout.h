// The packed layout, as gemworks/ops/layout.py draws it: panels of 16 rows, units of 64 columns, lines of 64 bytes.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace gemworks {

// Everything here is static: a function that several instruction sets compile must not be shared by the linker, which
// would keep one copy, perhaps of the wrong set.

constexpr int64_t kRows = 16;    // rows of a panel
constexpr int64_t kUnit = 64;    // columns of a unit
constexpr int64_t kLine = 64;    // bytes of a line
constexpr int64_t kBlock = 32;   // columns that share a scale, of weights in the -b32 formats and of activations always

static constexpr bool HasBlockScales(Format f) { return f == Format::kInt4B32 || f == Format::kInt8B32; }
// Formats whose products are sums of bytes; the others multiply floats.
static constexpr bool IsInteger(Format f) { return f != Format::kSfp8 && f != Format::kBf16; }

static constexpr int64_t CodeLines(Format f) {
  return f == Format::kInt4B32 || f == Format::kInt4 ? 8 : f == Format::kBf16 ? 32 : 16;
}
static constexpr int64_t UnitBytes(Format f) { return (CodeLines(f) + (HasBlockScales(f) ? 1 : 0)) * kLine; }
static constexpr int64_t Units(int64_t cols) { return (cols + kUnit - 1) / kUnit; }
static constexpr int64_t Panels(int64_t rows) { return (rows + kRows - 1) / kRows; }
static constexpr int64_t PanelBytes(Format f, int64_t cols) {
  return Units(cols) * UnitBytes(f) + (HasBlockScales(f) || f == Format::kBf16 ? 0 : kLine);
}
static constexpr int64_t PackedBytes(const Matrix& m) { return Panels(m.rows) * PanelBytes(m.format, m.cols); }

}  // namespace gemworks
