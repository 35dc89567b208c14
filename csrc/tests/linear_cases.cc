// y = x W^T for every format over odd sizes, against a slow product that reads the packed layout itself; and for bf16 as
// published, row-major.
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "cases.h"
#include "matrices.h"
#include "pool.h"

namespace gemworks::test {
namespace {

// Blocks as activations have them: plain, all zero, with an outlier of 300 times the rest, tiny, one number only.
void FillActivations(Random& random, float* x, int count) {
  for (int block = 0; block < count; block += 32) {
    const int kind = random.Below(8), end = std::min(count, block + 32);
    for (int i = block; i < end; ++i) {
      x[i] = kind == 0 ? 0.0f : random.Between(-2, 2) * (kind == 1 ? 1e-12f : 1.0f);
      if (kind == 2 && i % 32 != 7) x[i] = 0.0f;
    }
    if (kind == 3) x[block + random.Below(end - block)] *= 300;
  }
}

void Check(const Kernels& kernels, Pool& pool, Format format, int tokens, int rows, int cols) {
  const uint64_t seed = static_cast<uint64_t>(rows) << 32 | static_cast<uint64_t>(cols) << 8 | static_cast<uint64_t>(format);
  const RandomMatrix weight(format, rows, cols, seed);
  Random random(seed + static_cast<uint64_t>(tokens) * 1000003);
  Memory x(sizeof(float) * tokens * cols), y(sizeof(float) * tokens * rows);
  FillActivations(random, x.as<float>(), tokens * cols);
  const LinearArguments arguments{tokens, x.as<float>(), weight.matrix(), y.as<float>()};
  Memory workspace(static_cast<size_t>(kernels.linear_workspace(arguments)));

  Case("%s linear %s, %d tokens, %d x %d, %d threads", kernels.isa, NameOf(format), tokens, rows, cols, pool.size());
  kernels.linear(arguments, pool, workspace.as<uint8_t>());
  char key[64];
  std::snprintf(key, sizeof(key), "linear %d %d %d %d", static_cast<int>(format), tokens, rows, cols);
  if (Same(key, y.as<float>(), y.bytes()) && pool.size() != 1) return;  // the run with one thread was looked at
  for (int t = 0; t < tokens; ++t) {
    for (int row = 0; row < rows; ++row) {
      const Bounded want = Multiply(weight, row, x.as<float>() + t * cols, cols, format);
      const float got = y.as<float>()[t * rows + row];
      if (!(std::fabs(got - want.value) <= want.bound)) {
        return Fail("token %d, row %d: want %.9g +- %.2g, got %.9g", t, row, want.value, want.bound, static_cast<double>(got));
      }
    }
  }
}

// Numbers that no int8 block holds spoil their own token at most.
void CheckOddNumbers(const Kernels& kernels, Pool& pool) {
  constexpr int kCols = 64, kRows = 16;
  constexpr float kOdd[] = {NAN, INFINITY, -INFINITY, 3e38f, 1e-38f, 1e-40f, 1e-45f};
  constexpr int kTokens = sizeof(kOdd) / sizeof(kOdd[0]) + 1;
  for (Format format : kFormats) {
    Case("%s linear %s, NaN, infinities and tiny numbers, %d threads", kernels.isa, NameOf(format), pool.size());
    const RandomMatrix weight(format, kRows, kCols, 7);
    Memory x(sizeof(float) * kTokens * kCols), y(sizeof(float) * kTokens * kRows);
    Random random(8);
    for (int i = 0; i < kTokens * kCols; ++i) {
      const int t = i / kCols;
      x.as<float>()[i] = random.Between(-1, 1) * (t + 1 < kTokens && kOdd[t] < 1 ? 0.0f : 1.0f);
      if (t + 1 < kTokens && i % 3 == 0) x.as<float>()[i] = kOdd[t];
    }
    const LinearArguments arguments{kTokens, x.as<float>(), weight.matrix(), y.as<float>()};
    Memory workspace(static_cast<size_t>(kernels.linear_workspace(arguments)));
    kernels.linear(arguments, pool, workspace.as<uint8_t>());
    for (int row = 0; row < kRows; ++row) {
      const int last = kTokens - 1;
      const Bounded want = Multiply(weight, row, x.as<float>() + last * kCols, kCols, format);
      if (!(std::fabs(y.as<float>()[last * kRows + row] - want.value) <= want.bound)) Fail("the token after them is wrong");
      for (int t = 0; t < last; ++t) {
        const float got = y.as<float>()[t * kRows + row];
        if (!std::isfinite(kOdd[t]) && std::isfinite(got)) Fail("%g among the activations gave %g", kOdd[t], static_cast<double>(got));
        if (kOdd[t] < 1e-30f && kOdd[t] > 0 && !(std::fabs(got) < 1e-30f)) Fail("%g gave %g", kOdd[t], static_cast<double>(got));
      }
    }
  }
}

float RoundedToBf16(float x) {
  const uint32_t bits = BitsOf(x);
  return FromBits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000);
}

void CheckRowMajor(const Kernels& kernels, Pool& pool, int tokens, int rows, int cols) {
  Case("%s row-major bf16, %d tokens, %d x %d, %d threads", kernels.isa, tokens, rows, cols, pool.size());
  Memory x(sizeof(float) * tokens * cols), y(sizeof(float) * tokens * rows), weight(sizeof(uint16_t) * rows * cols);
  Random random(static_cast<uint64_t>(rows * 1000 + cols));
  FillActivations(random, x.as<float>(), tokens * cols);
  for (int i = 0; i < rows * cols; ++i) weight.as<uint16_t>()[i] = static_cast<uint16_t>(BitsOf(random.Between(-2, 2)) >> 16);
  Memory workspace(sizeof(float) * tokens * cols);
  kernels.row_major({tokens, rows, cols, x.as<float>(), weight.as<uint16_t>(), y.as<float>()}, pool, workspace.as<uint8_t>());
  char key[64];
  std::snprintf(key, sizeof(key), "row-major %d %d %d", tokens, rows, cols);
  Same(key, y.as<float>(), y.bytes());
  for (int t = 0; t < tokens; ++t) {
    for (int row = 0; row < rows; ++row) {
      double want = 0, absolute = 0;
      for (int c = 0; c < cols; ++c) {
        const double term = static_cast<double>(RoundedToBf16(x.as<float>()[t * cols + c])) *
                            FromBits(static_cast<uint32_t>(weight.as<uint16_t>()[row * cols + c]) << 16);
        want += term, absolute += std::fabs(term);
      }
      // A lane's sum has cols / 32 roundings, and the lanes five more.
      const double bound = std::ldexp(absolute, -24) * (cols / 32 + 6) + 1e-37;
      const float got = y.as<float>()[t * rows + row];
      if (!(std::fabs(got - want) <= bound)) {
        return Fail("token %d, row %d: want %.9g +- %.2g, got %.9g", t, row, want, bound, static_cast<double>(got));
      }
    }
  }
}

}  // namespace

void TestLinear(const Kernels& kernels) {
  Pool& pool = Pool::Get();
  // All sizes with one thread; with more, those that differ in how work is shared.
  const bool all = pool.size() == 1;
  for (Format format : kFormats) {
    for (int cols : {32, 64, 96, 640}) {
      for (int rows : {1, 15, 16, 17, 50}) {
        for (int tokens = 0; tokens <= 9; ++tokens) {
          if (all || (cols == 96 && tokens % 3 == 1)) Check(kernels, pool, format, tokens, rows, cols);
        }
      }
    }
    // Enough pairs of panels that an item stands for several, and an odd one at the end.
    Check(kernels, pool, format, 1, 16 * 67, 64);
    Check(kernels, pool, format, 14, 16 * 67 - 5, 64);
  }
  CheckOddNumbers(kernels, pool);
  for (int tokens = 1; tokens <= 4; ++tokens) {
    for (int cols : {16, 32, 48, 640}) {
      for (int rows : {1, 64, 65}) CheckRowMajor(kernels, pool, tokens, rows, cols);
    }
  }
}

}  // namespace gemworks::test
