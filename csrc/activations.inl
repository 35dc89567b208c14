// Rows of activations on their way into a matrix product: normed, and quantized to int8 in blocks of 32.
//
//     block of 32 floats  ->  32 x int8, one fp32 scale = max|x| / 127, and the block's sum of codes
//
// The sums are kept times -8 and -128: weights are stored unsigned, as value + 8 or + 128, and a product starts from
// what that offset adds, negated. A scale for each block and not for each row: Gemma's activations have outliers of
// some hundred times the rest, which would push every other value of the row into a few codes.

// T rows, each padded with zeros to a multiple of 64. Integer formats read codes, scale, start; float ones read x.
struct Activations {
  int64_t rows = 0, cols = 0, padded = 0, blocks = 0;
  int8_t* codes = nullptr;    // [rows, padded]
  float* scale = nullptr;     // [rows, blocks]
  int32_t* start4 = nullptr;  // [rows, blocks], -8 * sum of the block's codes
  int32_t* start8 = nullptr;  // [rows, blocks], -128 * sum
  float* x = nullptr;         // [rows, padded]

  static int64_t Bytes(int64_t rows, int64_t cols) {
    const int64_t units = Units(cols), blocks = 2 * units;
    return Aligned(rows * units * kUnit) + 3 * Aligned(rows * blocks * 4) + Aligned(rows * units * kUnit * 4);
  }
  // Lays the arrays out in `memory`, 64-byte aligned, Bytes(rows, cols) long.
  Activations(uint8_t* memory, int64_t rows_, int64_t cols_)
      : rows(rows_), cols(cols_), padded(Units(cols_) * kUnit), blocks(2 * Units(cols_)) {
    codes = reinterpret_cast<int8_t*>(memory);
    memory += Aligned(rows * padded);
    scale = reinterpret_cast<float*>(memory);
    memory += Aligned(rows * blocks * 4);
    start4 = reinterpret_cast<int32_t*>(memory);
    memory += Aligned(rows * blocks * 4);
    start8 = reinterpret_cast<int32_t*>(memory);
    memory += Aligned(rows * blocks * 4);
    x = reinterpret_cast<float*>(memory);
  }
};

// Codes of sixteen numbers. The bounds take NaN and what no int32 holds, which 127 / largest makes of infinities and of
// numbers under 2^-121, to -127 or 127 on every processor.
inline Ints ToCodes(Floats x, float inverse) {
  return ToInts(Min(Max(Mul(x, Set(inverse)), Set(-127.0f)), Set(127.0f)));
}

// Quantizes block b of row t from 32 floats.
inline void QuantizeBlock(const Activations& a, int64_t t, int64_t b, Floats low, Floats high) {
  const float largest = Largest(Max(Abs(low), Abs(high)));
  const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
  const Ints low_codes = ToCodes(low, inverse), high_codes = ToCodes(high, inverse);
  int8_t* codes = a.codes + t * a.padded + b * kBlock;
  StoreInt8(codes, low_codes);
  StoreInt8(codes + kLanes, high_codes);
  const int32_t sum = SumInts(AddInts(low_codes, high_codes));
  const int64_t at = t * a.blocks + b;
  a.scale[at] = largest * (1.0f / 127.0f);
  a.start4[at] = -8 * sum;
  a.start8[at] = -128 * sum;
}

// 1 / rms(x) of n floats, n a multiple of 16.
inline float InverseRms(const float* x, int64_t n, float eps) {
  Floats sum = Zero();
  for (int64_t i = 0; i < n; i += kLanes) {
    const Floats v = Load(x + i);
    sum = MulAdd(v, v, sum);
  }
  return 1.0f / std::sqrt(Sum(sum) / static_cast<float>(n) + eps);
}

// Which forms of a row the products after it read.
struct Wanted {
  bool codes = false, floats = false;
  void Add(Format f) { (IsInteger(f) ? codes : floats) = true; }
};

// Fills row t from x: times (1 + gain) / rms(x) where a gain is given, as it is where gain is null.
inline void PrepareRow(const Activations& a, int64_t t, const float* x, const float* gain, float eps, Wanted wanted) {
  const float inverse = gain ? InverseRms(x, a.cols, eps) : 1.0f;
  const auto at = [&](int64_t i) {
    if (i >= a.cols) return Zero();
    if (!gain) return Load(x + i);
    return Mul(Mul(Load(x + i), Set(inverse)), Add(Set(1.0f), Load(gain + i)));
  };
  for (int64_t i = 0; i < a.padded; i += kBlock) {
    const Floats low = at(i), high = at(i + kLanes);
    if (wanted.codes) QuantizeBlock(a, t, i / kBlock, low, high);
    if (wanted.floats) {
      Store(a.x + t * a.padded + i, low);
      Store(a.x + t * a.padded + i + kLanes, high);
    }
  }
}

// out = residual + y * (1 + gain) / rms(y), n floats, n a multiple of 16.
inline void AddNormed(float* out, const float* residual, const float* y, const float* gain, int64_t n, float eps) {
  const Floats inverse = Set(InverseRms(y, n, eps));
  for (int64_t i = 0; i < n; i += kLanes) {
    const Floats normed = Mul(Mul(Load(y + i), inverse), Add(Set(1.0f), Load(gain + i)));
    Store(out + i, Add(Load(residual + i), normed));
  }
}
