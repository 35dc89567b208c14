// y = x W^T for a few tokens and a bf16 matrix as it was published, row-major: no packing, no second copy.
//
//     row r     w0 w1 ... w15 | w16 ... w31 | ...        bf16, 2 bytes each
//     sums      even vectors  | odd vectors               two float accumulators a token, added at the row's end
//
// The activations are rounded to bf16, as in the twin (ops/xla/basic.py); products and sums are fp32. Ceiling: 2 bytes
// a weight from memory. More tokens than four are XLA's, whose bf16 products use what the CPU has for them.

template <int T>
inline void Bf16Row(const uint16_t* row, const float* x, int64_t cols, float* y, int64_t y_stride) {
  Floats even[T], odd[T];
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t) even[t] = odd[t] = Zero();
  int64_t i = 0;
  for (; i + 2 * kLanes <= cols; i += 2 * kLanes) {
    const Floats first = LoadBf16(row + i), second = LoadBf16(row + i + kLanes);
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) {
      even[t] = MulAdd(first, Load(x + t * cols + i), even[t]);
      odd[t] = MulAdd(second, Load(x + t * cols + i + kLanes), odd[t]);
    }
  }
  if (i < cols) {
    const Floats last = LoadBf16(row + i);
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) even[t] = MulAdd(last, Load(x + t * cols + i), even[t]);
  }
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t) y[t * y_stride] = Sum(Add(even[t], odd[t]));
}

void RowMajor(const RowMajorArguments& g, Pool& pool, uint8_t* workspace) {
  float* x = reinterpret_cast<float*>(workspace);  // rounded
  constexpr int64_t kRowsAnItem = 64;
  Phase tokens(g.tokens), rows((g.rows + kRowsAnItem - 1) / kRowsAnItem);
  pool.Run([&](int) {
    tokens.Share([&](int64_t t) {
      uint16_t half[kLanes];
      for (int64_t i = 0; i < g.cols; i += kLanes) {
        StoreBf16(half, Load(g.x + t * g.cols + i));
        Store(x + t * g.cols + i, LoadBf16(half));
      }
    });
    rows.Share([&](int64_t item) {
      const int64_t end = std::min(g.rows, (item + 1) * kRowsAnItem);
      for (int64_t r = item * kRowsAnItem; r < end; ++r) {
        const uint16_t* row = g.weight + r * g.cols;
        switch (g.tokens) {
          case 1: Bf16Row<1>(row, x, g.cols, g.y + r, g.rows); break;
          case 2: Bf16Row<2>(row, x, g.cols, g.y + r, g.rows); break;
          case 3: Bf16Row<3>(row, x, g.cols, g.y + r, g.rows); break;
          default: Bf16Row<4>(row, x, g.cols, g.y + r, g.rows); break;
        }
      }
    });
  });
}
