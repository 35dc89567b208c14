// Every function of a SIMD vocabulary against plain code, bit for bit. simd_<isa>_test.cc includes a vocabulary and
// then this file. Only declarations and C headers here: see check.h.

#include <cfloat>
#include <climits>
#include <cmath>
#include <cstring>

#include "check.h"

namespace gemworks::GEMWORKS_NS {
namespace {

using test::BitsOf;
using test::Case;
using test::Fail;
using test::FromBits;
using test::Random;

#include "math.inl"
#include "softmax.inl"

void Begin(const char* name) { Case("%s simd %s", GEMWORKS_ISA_NAME, name); }

// NaN is NaN, whatever its other bits.
bool SameFloat(float a, float b) { return BitsOf(a) == BitsOf(b) || (std::isnan(a) && std::isnan(b)); }

void ExpectFloats(const float* want, Floats got, const char* what) {
  float lanes[kLanes + 1];
  Store(lanes + 1, got);  // unaligned
  for (int i = 0; i < kLanes; ++i) {
    if (!SameFloat(want[i], lanes[i + 1])) {
      return Fail("%s lane %d: want %a (%08x), got %a (%08x)", what, i, want[i], BitsOf(want[i]), lanes[i + 1],
                  BitsOf(lanes[i + 1]));
    }
  }
}

void ExpectInts(const int32_t* want, Ints got, const char* what) {
  int32_t lanes[kLanes + 1];
  StoreInts(lanes + 1, got);
  for (int i = 0; i < kLanes; ++i) {
    if (want[i] != lanes[i + 1]) return Fail("%s lane %d: want %d, got %d", what, i, want[i], lanes[i + 1]);
  }
}

// Any bits one time in two, otherwise a number that arithmetic likes to get wrong.
float AnyFloat(Random& random) {
  constexpr float kSpecial[] = {0.0f, -0.0f, 1.0f, -1.0f, 0.5f, -1.5f, 2.5f, INFINITY, -INFINITY, NAN, FLT_MAX, -FLT_MAX,
                                FLT_MIN, -FLT_MIN, FLT_MIN / 2, 1e-45f, 16777217.0f, 3.14159274f};
  constexpr int kCount = sizeof(kSpecial) / sizeof(kSpecial[0]);
  return random.Below(2) ? FromBits(random.Bits()) : kSpecial[random.Below(kCount)];
}

int32_t AnyInt(Random& random) {
  constexpr int32_t kSpecial[] = {0, 1, -1, INT_MAX, INT_MIN, INT_MIN + 1, 127, 128, -128, -129, 32767, 32768, -32769, 65536};
  constexpr int kCount = sizeof(kSpecial) / sizeof(kSpecial[0]);
  return random.Below(2) ? static_cast<int32_t>(random.Bits()) : kSpecial[random.Below(kCount)];
}

// f of three vectors against g of their lanes.
template <typename F, typename G>
void ExpectLanes(const char* name, F f, G g) {
  Begin(name);
  Random random(1);
  for (int round = 0; round < 2000; ++round) {
    float a[kLanes + 1], b[kLanes], c[kLanes], want[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      a[i + 1] = AnyFloat(random), b[i] = AnyFloat(random), c[i] = AnyFloat(random);
      want[i] = g(a[i + 1], b[i], c[i]);
    }
    ExpectFloats(want, f(Load(a + 1), Load(b), Load(c)), name);
  }
}

void TestFloats() {
  ExpectLanes("Load", [](Floats a, Floats, Floats) { return a; }, [](float a, float, float) { return a; });
  ExpectLanes("Add", [](Floats a, Floats b, Floats) { return Add(a, b); }, [](float a, float b, float) { return a + b; });
  ExpectLanes("Sub", [](Floats a, Floats b, Floats) { return Sub(a, b); }, [](float a, float b, float) { return a - b; });
  ExpectLanes("Mul", [](Floats a, Floats b, Floats) { return Mul(a, b); }, [](float a, float b, float) { return a * b; });
  ExpectLanes("Div", [](Floats a, Floats b, Floats) { return Div(a, b); }, [](float a, float b, float) { return a / b; });
  ExpectLanes("Max", [](Floats a, Floats b, Floats) { return Max(a, b); }, [](float a, float b, float) { return a > b ? a : b; });
  ExpectLanes("Min", [](Floats a, Floats b, Floats) { return Min(a, b); }, [](float a, float b, float) { return a < b ? a : b; });
  ExpectLanes("Abs", [](Floats a, Floats, Floats) { return Abs(a); }, [](float a, float, float) { return std::fabs(a); });
  ExpectLanes("MulAdd", [](Floats a, Floats b, Floats c) { return MulAdd(a, b, c); },
              [](float a, float b, float c) { return std::fma(a, b, c); });
  ExpectLanes("AsInts", [](Floats a, Floats, Floats) { return AsFloats(AsInts(a)); }, [](float a, float, float) { return a; });
  ExpectLanes("Set", [](Floats, Floats, Floats) { return Set(-0.1f); }, [](float, float, float) { return -0.1f; });
  ExpectLanes("Zero", [](Floats, Floats, Floats) { return Zero(); }, [](float, float, float) { return 0.0f; });
}

void TestAcrossLanes() {
  Begin("Sum, Largest, Greater");
  Random random(2);
  for (int round = 0; round < 2000; ++round) {
    float a[kLanes], b[kLanes], x[kLanes];
    uint32_t greater = 0;
    float largest = -INFINITY;
    for (int i = 0; i < kLanes; ++i) {
      a[i] = AnyFloat(random), b[i] = random.Below(4) ? AnyFloat(random) : a[i];
      greater |= static_cast<uint32_t>(a[i] > b[i]) << i;
      x[i] = random.Between(-1, 1) * std::ldexp(1.0f, random.Below(40) - 20);
      largest = std::fmax(largest, x[i]);
    }
    if (Greater(Load(a), Load(b)) != greater) Fail("Greater: want %04x, got %04x", greater, Greater(Load(a), Load(b)));
    if (Largest(Load(x)) != largest) Fail("Largest: want %a, got %a", largest, Largest(Load(x)));
    const float got = Sum(Load(x));
    for (int half = kLanes / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) x[i] += x[i + half];
    }
    if (!SameFloat(x[0], got)) Fail("Sum: want %a, got %a", x[0], got);
  }
}

void TestInts() {
  Begin("Ints");
  Random random(3);
  ExpectInts((const int32_t[kLanes]){}, ZeroInts(), "ZeroInts");
  for (int round = 0; round < 2000; ++round) {
    int32_t a[kLanes + 1], b[kLanes], sum[kLanes], both[kLanes], any[kLanes], left[kLanes], right[kLanes], pick[kLanes];
    float as_float[kLanes];
    const int bits = round % 32;
    for (int i = 0; i < kLanes; ++i) {
      const int32_t x = a[i + 1] = AnyInt(random), y = b[i] = random.Below(4) ? AnyInt(random) : a[i + 1];
      sum[i] = static_cast<int32_t>(static_cast<uint32_t>(x) + static_cast<uint32_t>(y));
      both[i] = x & y;
      any[i] = x | y;
      left[i] = static_cast<int32_t>(static_cast<uint32_t>(x) << bits);
      right[i] = static_cast<int32_t>(static_cast<uint32_t>(x) >> bits);
      pick[i] = x > y ? x : y / 2;
      as_float[i] = static_cast<float>(x);
    }
    int32_t all = 0, halves[kLanes], small[kLanes];
    for (int i = 0; i < kLanes; ++i) all += small[i] = sum[i] / kLanes;
    if (SumInts(LoadInts(small)) != all) Fail("SumInts: want %d, got %d", all, SumInts(LoadInts(small)));
    for (int i = 0; i < kLanes; ++i) halves[i] = b[i] / 2;
    const Ints va = LoadInts(a + 1), vb = LoadInts(b);
    ExpectInts(sum, AddInts(va, vb), "AddInts");
    ExpectInts(both, And(va, vb), "And");
    ExpectInts(any, Or(va, vb), "Or");
    ExpectInts(left, ShiftLeft(va, bits), "ShiftLeft");
    ExpectInts(right, ShiftRight(va, bits), "ShiftRight");
    ExpectInts(pick, IfGreater(va, vb, va, LoadInts(halves)), "IfGreater");
    ExpectFloats(as_float, ToFloats(va), "ToFloats");
    for (int i = 0; i < kLanes; ++i) both[i] = a[1];
    ExpectInts(both, SetInts(a[1]), "SetInts");
  }
}

void TestPowersOf2() {
  Begin("Floor, TimesPowerOf2, PackBytes");
  Random random(10);
  for (int round = 0; round < 4000; ++round) {
    float x[kLanes], by[kLanes], floors[kLanes], want[kLanes];
    int32_t bytes[4][kLanes], packed[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      x[i] = random.Below(4) ? random.Between(-300, 10) : std::nearbyint(random.Between(-130, 130));
      by[i] = 1 + random.Between(0, 1) * 0.999f, floors[i] = std::floor(x[i]);
      want[i] = std::ldexp(by[i], static_cast<int>(floors[i]));
      uint32_t all = 0;
      for (int j = 0; j < 4; ++j) all |= static_cast<uint32_t>(bytes[j][i] = random.Below(256)) << 8 * j;
      packed[i] = static_cast<int32_t>(all);
    }
    ExpectFloats(floors, Floor(Load(x)), "Floor");
    float got[kLanes];
    Store(got, TimesPowerOf2(Load(by), Load(floors)));
    for (int i = 0; i < kLanes; ++i) {
      const bool is_tiny = want[i] < 0x1p-125f;
      if (floors[i] <= 126 && (is_tiny ? !(got[i] >= 0 && got[i] < 0x1p-125f) : got[i] != want[i])) {
        Fail("%a * 2^%g: got %a", static_cast<double>(by[i]), static_cast<double>(floors[i]), static_cast<double>(got[i]));
      }
    }
    ExpectInts(packed, PackBytes(LoadInts(bytes[0]), LoadInts(bytes[1]), LoadInts(bytes[2]), LoadInts(bytes[3])), "PackBytes");
  }
  float far[kLanes];
  Store(far, TimesPowerOf2(Set(1.5f), Set(-1e12f)));
  if (!(far[0] >= 0 && far[0] < 0x1p-125f)) Fail("1.5 * 2^-1e12 must be about 0");
}

#if defined(GEMWORKS_BF16_DOTS)
void TestPairs() {
  Begin("LoadPairs, ToPairs, DotPairs");
  Random random(9);
  for (int round = 0; round < 2000; ++round) {
    float even[kLanes], odd[kLanes], acc[kLanes];
    uint16_t bits[2][kLanes], other[2][kLanes];
    int32_t want[kLanes], pairs[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      even[i] = random.Between(-1, 1) * std::ldexp(1.0f, random.Below(40) - 20), odd[i] = random.Between(-9, 9);
      acc[i] = random.Between(-4, 4);
    }
    StoreBf16(bits[0], Load(even)), StoreBf16(bits[1], Load(odd));
    StoreBf16(other[0], Load(acc)), StoreBf16(other[1], Load(even));
    for (int i = 0; i < kLanes; ++i) want[i] = static_cast<int32_t>(static_cast<uint32_t>(bits[1][i]) << 16 | bits[0][i]);
    ExpectInts(want, ToPairs(Load(even), Load(odd)), "ToPairs");
    StoreInts(pairs, LoadPairs(bits[0], bits[1]));
    ExpectInts(want, LoadInts(pairs), "LoadPairs");
    float got[kLanes];
    Store(got, DotPairs(Load(acc), LoadPairs(bits[0], bits[1]), LoadPairs(other[0], other[1])));
    for (int i = 0; i < kLanes; ++i) {
      const auto value = [](uint16_t x) { return static_cast<double>(FromBits(static_cast<uint32_t>(x) << 16)); };
      const double a = value(bits[0][i]) * value(other[0][i]), b = value(bits[1][i]) * value(other[1][i]);
      const double bound = 3 * std::ldexp(std::fabs(acc[i]) + std::fabs(a) + std::fabs(b), -24);
      if (!(std::fabs(got[i] - (acc[i] + a + b)) <= bound)) Fail("DotPairs: want %.9g, got %.9g", acc[i] + a + b, static_cast<double>(got[i]));
    }
  }
}
#endif

void TestToInts() {
  Begin("ToInts");
  Random random(4);
  // Ties, numbers beside them, and the ends of the range. What lies outside is each processor's own affair.
  constexpr float kSpecial[] = {0.5f, 1.5f, 2.5f, 126.5f, 127.5f, 128.5f, 8388607.5f, 4194303.5f, 0.49999997f, 0.0f, 1e-40f, 2147483520.0f};
  constexpr int kCount = sizeof(kSpecial) / sizeof(kSpecial[0]);
  for (int round = 0; round < 4000; ++round) {
    float x[kLanes];
    int32_t want[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      x[i] = random.Below(2) ? kSpecial[random.Below(kCount)] : std::ldexp(random.Between(0, 1), random.Below(31));
      if (random.Below(2)) x[i] = -x[i];
      want[i] = static_cast<int32_t>(std::nearbyint(x[i]));
    }
    ExpectInts(want, ToInts(Load(x)), "ToInts");
  }
  int32_t smallest[kLanes];
  for (int32_t& w : smallest) w = INT_MIN;
  ExpectInts(smallest, ToInts(Set(-2147483648.0f)), "ToInts(-2^31)");
}

void TestNarrowFloats() {
  Begin("LoadFp16, LoadBf16");
  for (int first = 0; first < 65536; first += kLanes) {
    uint16_t codes[kLanes + 1];
    float half[kLanes], brain[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      codes[i + 1] = static_cast<uint16_t>(first + i);
      half[i] = test::HalfToFloat(codes[i + 1]);
      brain[i] = FromBits(static_cast<uint32_t>(first + i) << 16);
    }
    ExpectFloats(half, LoadFp16(codes + 1), "LoadFp16");
    ExpectFloats(brain, LoadBf16(codes + 1), "LoadBf16");
  }
  Begin("StoreBf16");
  constexpr uint32_t kLow[] = {0, 1, 0x7fff, 0x8000, 0x8001, 0xffff};
  for (uint32_t low : kLow) {
    for (uint32_t first = 0; first < 65536; first += kLanes) {
      float x[kLanes];
      uint16_t got[kLanes + 1];
      for (uint32_t i = 0; i < kLanes; ++i) x[i] = FromBits((first + i) << 16 | low);
      StoreBf16(got + 1, Load(x));
      for (uint32_t i = 0; i < kLanes; ++i) {
        const uint32_t top = first + i;
        const bool up = low > 0x8000 || (low == 0x8000 && top % 2 == 1);
        const uint32_t want = std::isnan(x[i]) ? top | 0x40 : top + up;
        if (got[i + 1] != want) Fail("%a (%08x): want %04x, got %04x", x[i], BitsOf(x[i]), want, got[i + 1]);
      }
    }
  }
}

void TestBytes() {
  Begin("LoadInt8, LoadUint8, StoreInt8");
  for (int first = 0; first < 256; ++first) {
    uint8_t codes[kLanes + 1];
    float as_signed[kLanes];
    int32_t as_unsigned[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      codes[i + 1] = static_cast<uint8_t>(first + i);
      as_signed[i] = static_cast<float>(static_cast<int8_t>(codes[i + 1]));
      as_unsigned[i] = codes[i + 1];
    }
    ExpectFloats(as_signed, LoadInt8(reinterpret_cast<int8_t*>(codes + 1)), "LoadInt8");
    ExpectInts(as_unsigned, LoadUint8(codes + 1), "LoadUint8");
  }
  Random random(5);
  for (int round = 0; round < 4000; ++round) {
    int32_t x[kLanes];
    int8_t got[kLanes + 1];
    for (int32_t& v : x) v = random.Below(2) ? AnyInt(random) : random.Below(600) - 300;
    StoreInt8(got + 1, LoadInts(x));
    for (int i = 0; i < kLanes; ++i) {
      const int want = x[i] < -128 ? -128 : x[i] > 127 ? 127 : x[i];
      if (got[i + 1] != want) Fail("StoreInt8(%d): want %d, got %d", x[i], want, got[i + 1]);
    }
  }
  Begin("LoadBytes, StoreBytes, LowNibbles, HighNibbles, RepeatFour");
  alignas(64) uint8_t line[64], low[64], high[64], copy[64];
  for (int first = 0; first < 256; first += 64) {
    int8_t four[5];
    for (int i = 0; i < 64; ++i) line[i] = static_cast<uint8_t>(first + i);
    StoreBytes(copy, LoadBytes(line));
    StoreBytes(low, LowNibbles(LoadBytes(line)));
    StoreBytes(high, HighNibbles(LoadBytes(line)));
    for (int i = 0; i < 64; ++i) {
      if (copy[i] != line[i] || low[i] != line[i] % 16 || high[i] != line[i] / 16) Fail("byte %02x", line[i]);
    }
    std::memcpy(four + 1, line, 4);
    StoreBytes(copy, RepeatFour(four + 1));
    for (int i = 0; i < 64; ++i) {
      if (copy[i] != line[i % 4]) Fail("RepeatFour at %d: want %02x, got %02x", i, line[i % 4], copy[i]);
    }
  }
}

// Dot(acc, w, a) where every group has bytes of its own.
template <typename F>
void ExpectDot(const uint8_t* w, const int8_t* a, const int32_t* from, F dot) {
  int32_t want[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    int32_t sum = 0;
    for (int j = 4 * i; j < 4 * i + 4; ++j) sum += w[j] * a[j];
    want[i] = static_cast<int32_t>(static_cast<uint32_t>(from[i]) + static_cast<uint32_t>(sum));
  }
  ExpectInts(want, dot(LoadInts(from), LoadBytes(w), LoadBytes(reinterpret_cast<const uint8_t*>(a))), "sum");
}

// `most` is the largest weight.
template <typename F>
void TestDot(const char* name, int most, F dot) {
  Begin(name);
  Random random(6);
  alignas(64) uint8_t w[64];
  alignas(64) int8_t a[64];
  int32_t from[kLanes];
  // Every pair of a weight and an activation four times in a group, where sums in 16 bits saturate first.
  for (int weight = 0; weight <= most; ++weight) {
    for (int first = -128; first < 128; first += kLanes) {
      for (int i = 0; i < 64; ++i) w[i] = static_cast<uint8_t>(weight), a[i] = static_cast<int8_t>(first + i / 4);
      for (int32_t& f : from) f = AnyInt(random);
      ExpectDot(w, a, from, dot);
    }
  }
  for (int round = 0; round < 20000; ++round) {
    constexpr int8_t kEnds[] = {-128, -127, 127, 0};
    for (int i = 0; i < 64; ++i) {
      w[i] = static_cast<uint8_t>(random.Below(4) ? random.Below(most + 1) : most * random.Below(2));
      a[i] = static_cast<int8_t>(random.Below(4) ? random.Below(256) - 128 : kEnds[random.Below(4)]);
    }
    for (int32_t& f : from) f = random.Below(100000) - 50000;
    ExpectDot(w, a, from, dot);
  }
}

void TestMath() {
  Begin("Exp");
  float worst = 0, results[kLanes];
  uint64_t all = 0;
  for (float x = -87; x < 88; x += 0.0021f * kLanes) {
    float in[kLanes];
    for (int i = 0; i < kLanes; ++i) in[i] = std::fmin(x + 0.0021f * static_cast<float>(i), 88.0f);
    Store(results, Exp(Load(in)));
    for (int i = 0; i < kLanes; ++i) {
      const double want = std::exp(static_cast<double>(in[i]));
      worst = std::fmax(worst, static_cast<float>(std::fabs(results[i] - want) / want));
      all = all * 31 + BitsOf(results[i]);
    }
  }
  if (!(worst <= 0x1p-23f)) Fail("wrong by %a of itself, at most 2^-23", worst);
  test::Same("Exp", &all, sizeof(all));

  Begin("GeluTanh");
  all = 0;
  for (float x = -20; x < 20; x += 0.00091f * kLanes) {
    float in[kLanes];
    for (int i = 0; i < kLanes; ++i) in[i] = x + 0.00091f * static_cast<float>(i);
    Store(results, GeluTanh(Load(in)));
    for (int i = 0; i < kLanes; ++i) {
      // Four roundings make the exponent wrong by 2^-22 of itself at most, and its power by that many times the exponent.
      const double v = in[i], exponent = -1.5957691216057308 * (v + 0.044715 * v * v * v), want = v / (1 + std::exp(exponent));
      if (!(std::fabs(results[i] - want) <= std::fabs(want) * std::ldexp(8 + 2 * std::fabs(exponent), -23) + 1e-36)) {
        return Fail("gelu(%.9g): want %.9g, got %.9g", v, want, static_cast<double>(results[i]));
      }
      all = all * 31 + BitsOf(results[i]);
    }
  }
  test::Same("GeluTanh", &all, sizeof(all));
}

void TestExpBelowZero() {
  Begin("Exp below zero");
  uint64_t all = 0;
  float in[kLanes], results[kLanes];
  // 0, and every 64th float from -2^-20 to -87.6; below 2^-126 the last bits are lost.
  for (uint32_t bits = BitsOf(-0x1p-20f); bits < BitsOf(-87.6f); bits += 64 * kLanes) {
    for (uint32_t i = 0; i < kLanes; ++i) in[i] = i == 0 ? 0.0f : FromBits(bits + 64 * i);
    Store(results, Exp(Load(in)));
    for (int i = 0; i < kLanes; ++i) {
      const double want = std::exp(static_cast<double>(in[i]));
      if (!(std::fabs(results[i] - want) <= want * 0x1p-23 + 0x1p-149)) {
        return Fail("exp(%.9g): want %.9g, got %.9g", static_cast<double>(in[i]), want, static_cast<double>(results[i]));
      }
      all = all * 31 + BitsOf(results[i]);
    }
  }
  constexpr float kTooLow[] = {-88.0f, -1000.0f, -1e30f, -INFINITY};
  for (float x : kTooLow) {
    Store(results, Exp(Set(x)));
    if (BitsOf(results[0]) != 0) Fail("exp(%g) is %g and must be 0", static_cast<double>(x), static_cast<double>(results[0]));
  }
  Store(results, Exp(Set(NAN)));
  if (!std::isnan(results[0])) Fail("exp(NaN) must be NaN");
  test::Same("Exp below zero", &all, sizeof(all));
}

}  // namespace

void TestSimd() {
  TestFloats();
  TestAcrossLanes();
#if defined(GEMWORKS_BF16_DOTS)
  TestPairs();
#endif
  TestPowersOf2();
  TestInts();
  TestToInts();
  TestNarrowFloats();
  TestBytes();
  TestDot("Dot4", 255, [](Ints acc, Bytes w, Bytes a) { return Dot4(acc, w, a); });
  TestDot("DotSmall4", 127, [](Ints acc, Bytes w, Bytes a) { return DotSmall4(acc, w, a); });
  TestMath();
  TestExpBelowZero();
}

}  // namespace gemworks::GEMWORKS_NS
