// The SIMD vocabulary of the kernels, for 64-bit Arm with the dot products of Armv8.2 (+dotprod): Apple M1, Graviton 2,
// Cortex-A76 and later. Where the file is compiled with +i8mm as well, Dot4 takes one instruction instead of two.
//
// Four q registers for every value. Each function gives the same bits as in simd_avx512.h (csrc/tests/simd_test.inl),
// but for ToInts of what no int32 holds: Arm saturates and NaN becomes 0.
#pragma once

#include <arm_neon.h>

#include <cstdint>

#define GEMWORKS_NS neon
#define GEMWORKS_ISA_NAME "neon"
// Sixteen of the thirty-two registers accumulate; four hold a line, one the activations, the rest is in flight.
#define GEMWORKS_TILE_TOKENS 4
#define GEMWORKS_TILE_PANELS 1

namespace gemworks::neon {

constexpr int kLanes = 16;

// `v0` is lanes 0..3. Bytes: `v0` is groups 0..3.
struct Floats {
  float32x4_t v0, v1, v2, v3;
};
struct Ints {
  int32x4_t v0, v1, v2, v3;
};
struct Bytes {
  uint8x16_t v0, v1, v2, v3;
};

// f of each register of one, two or three values.
#define GEMWORKS_EACH(f, a) {f(a.v0), f(a.v1), f(a.v2), f(a.v3)}
#define GEMWORKS_EACH2(f, a, b) {f(a.v0, b.v0), f(a.v1, b.v1), f(a.v2, b.v2), f(a.v3, b.v3)}
#define GEMWORKS_EACH3(f, a, b, c) {f(a.v0, b.v0, c.v0), f(a.v1, b.v1, c.v1), f(a.v2, b.v2, c.v2), f(a.v3, b.v3, c.v3)}

inline Floats Set(float x) {
  const float32x4_t v = vdupq_n_f32(x);
  return {v, v, v, v};
}
inline Floats Zero() { return Set(0.0f); }
inline Floats Load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}; }
inline void Store(float* p, Floats x) {
  vst1q_f32(p, x.v0);
  vst1q_f32(p + 4, x.v1);
  vst1q_f32(p + 8, x.v2);
  vst1q_f32(p + 12, x.v3);
}
inline Floats Add(Floats a, Floats b) { return GEMWORKS_EACH2(vaddq_f32, a, b); }
inline Floats Sub(Floats a, Floats b) { return GEMWORKS_EACH2(vsubq_f32, a, b); }
inline Floats Mul(Floats a, Floats b) { return GEMWORKS_EACH2(vmulq_f32, a, b); }
inline Floats Div(Floats a, Floats b) { return GEMWORKS_EACH2(vdivq_f32, a, b); }
inline float32x4_t MaxQuarter(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
inline float32x4_t MinQuarter(float32x4_t a, float32x4_t b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
// a where a > b, otherwise b: what x86 does with NaN and with zeros of either sign; fmax does otherwise.
inline Floats Max(Floats a, Floats b) { return GEMWORKS_EACH2(MaxQuarter, a, b); }
// a where a < b, otherwise b.
inline Floats Min(Floats a, Floats b) { return GEMWORKS_EACH2(MinQuarter, a, b); }
inline Floats Abs(Floats a) { return GEMWORKS_EACH(vabsq_f32, a); }
// a * b + c, rounded once.
inline Floats MulAdd(Floats a, Floats b, Floats c) { return GEMWORKS_EACH3(vfmaq_f32, c, a, b); }

// The order of the additions is fixed: halves, quarters, eighths, pairs. The same in every vocabulary.
inline float Sum(Floats x) {
  const float32x4_t q = vaddq_f32(vaddq_f32(x.v0, x.v2), vaddq_f32(x.v1, x.v3));
  const float32x2_t e = vadd_f32(vget_low_f32(q), vget_high_f32(q));
  return vget_lane_f32(vpadd_f32(e, e), 0);
}
inline float Largest(Floats x) { return vmaxvq_f32(vmaxq_f32(vmaxq_f32(x.v0, x.v2), vmaxq_f32(x.v1, x.v3))); }
// Bit i is set where a[i] > b[i].
inline uint32_t Greater(Floats a, Floats b) {
  // Lanes of all ones -> one byte a lane -> one bit a lane, added up in two halves.
  const uint16x8_t lo = vcombine_u16(vmovn_u32(vcgtq_f32(a.v0, b.v0)), vmovn_u32(vcgtq_f32(a.v1, b.v1)));
  const uint16x8_t hi = vcombine_u16(vmovn_u32(vcgtq_f32(a.v2, b.v2)), vmovn_u32(vcgtq_f32(a.v3, b.v3)));
  constexpr uint8_t kBits[8] = {1, 2, 4, 8, 16, 32, 64, 128};
  const uint8x8_t bits = vld1_u8(kBits);
  const uint32_t low = vaddv_u8(vand_u8(vmovn_u16(lo), bits));
  return low | static_cast<uint32_t>(vaddv_u8(vand_u8(vmovn_u16(hi), bits))) << 8;
}

inline Ints SetInts(int32_t x) {
  const int32x4_t v = vdupq_n_s32(x);
  return {v, v, v, v};
}
inline Ints ZeroInts() { return SetInts(0); }
inline Ints LoadInts(const int32_t* p) { return {vld1q_s32(p), vld1q_s32(p + 4), vld1q_s32(p + 8), vld1q_s32(p + 12)}; }
inline void StoreInts(int32_t* p, Ints x) {
  vst1q_s32(p, x.v0);
  vst1q_s32(p + 4, x.v1);
  vst1q_s32(p + 8, x.v2);
  vst1q_s32(p + 12, x.v3);
}
inline Ints AddInts(Ints a, Ints b) { return GEMWORKS_EACH2(vaddq_s32, a, b); }
// Sum of the lanes, which must not overflow.
inline int32_t SumInts(Ints x) { return vaddvq_s32(vaddq_s32(vaddq_s32(x.v0, x.v2), vaddq_s32(x.v1, x.v3))); }
inline Ints ShiftLeft(Ints a, int bits) {
  const Ints by = SetInts(bits);
  return GEMWORKS_EACH2(vshlq_s32, a, by);
}
inline int32x4_t ShiftRightQuarter(int32x4_t a, int bits) {
  return vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(a), vdupq_n_s32(-bits)));
}
inline Ints ShiftRight(Ints a, int bits) {  // zeros come in
  return {ShiftRightQuarter(a.v0, bits), ShiftRightQuarter(a.v1, bits), ShiftRightQuarter(a.v2, bits),
          ShiftRightQuarter(a.v3, bits)};
}
// yes where a > b, otherwise no.
inline Ints IfGreater(Ints a, Ints b, Ints yes, Ints no) {
  return {vbslq_s32(vcgtq_s32(a.v0, b.v0), yes.v0, no.v0), vbslq_s32(vcgtq_s32(a.v1, b.v1), yes.v1, no.v1),
          vbslq_s32(vcgtq_s32(a.v2, b.v2), yes.v2, no.v2), vbslq_s32(vcgtq_s32(a.v3, b.v3), yes.v3, no.v3)};
}
inline Ints Or(Ints a, Ints b) { return GEMWORKS_EACH2(vorrq_s32, a, b); }
inline Ints And(Ints a, Ints b) { return GEMWORKS_EACH2(vandq_s32, a, b); }
inline Floats ToFloats(Ints a) { return GEMWORKS_EACH(vcvtq_f32_s32, a); }
// To nearest, ties to even. What no int32 holds becomes the nearest that one does; NaN becomes 0.
inline Ints ToInts(Floats a) { return GEMWORKS_EACH(vcvtnq_s32_f32, a); }
inline Floats AsFloats(Ints a) { return GEMWORKS_EACH(vreinterpretq_f32_s32, a); }
inline Ints AsInts(Floats a) { return GEMWORKS_EACH(vreinterpretq_s32_f32, a); }

// The largest whole number that is not above.
inline Floats Floor(Floats a) { return GEMWORKS_EACH(vrndmq_f32, a); }
inline float32x4_t TimesPowerOf2Quarter(float32x4_t a, float32x4_t n) {
  const int32x4_t whole = vcvtnq_s32_f32(MaxQuarter(n, vdupq_n_f32(-127.0f)));
  return vmulq_f32(a, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(whole, vdupq_n_s32(127)), 23)));
}
// a * 2^n for a whole n <= 127 and a in [1, 2): about 0 where n < -126.
inline Floats TimesPowerOf2(Floats a, Floats n) { return GEMWORKS_EACH2(TimesPowerOf2Quarter, a, n); }
// Four times sixteen numbers of 0..255 -> lane i holds a[i], b[i], c[i], d[i], the first in its lowest byte.
inline Ints PackBytes(Ints a, Ints b, Ints c, Ints d) {
  return Or(Or(a, ShiftLeft(b, 8)), Or(ShiftLeft(c, 16), ShiftLeft(d, 24)));
}

// Sixteen numbers stored in fewer bytes. Bf16 is written to nearest, ties to even; NaN stays NaN.
inline float32x4_t LoadFp16Quarter(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
inline Floats LoadFp16(const uint16_t* p) {
  return {LoadFp16Quarter(p), LoadFp16Quarter(p + 4), LoadFp16Quarter(p + 8), LoadFp16Quarter(p + 12)};
}
inline float32x4_t LoadBf16Quarter(const uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
inline Floats LoadBf16(const uint16_t* p) {
  return {LoadBf16Quarter(p), LoadBf16Quarter(p + 4), LoadBf16Quarter(p + 8), LoadBf16Quarter(p + 12)};
}
inline uint16x4_t RoundToBf16(float32x4_t x) {
  const uint32x4_t bits = vreinterpretq_u32_f32(x);
  const uint32x4_t top = vshrq_n_u32(bits, 16);
  const uint32x4_t half = vaddq_u32(vdupq_n_u32(0x7fff), vandq_u32(top, vdupq_n_u32(1)));
  const uint32x4_t rounded = vshrq_n_u32(vaddq_u32(bits, half), 16);
  const uint32x4_t quiet = vorrq_u32(top, vdupq_n_u32(0x40));
  return vmovn_u32(vbslq_u32(vceqq_f32(x, x), rounded, quiet));
}
inline void StoreBf16(uint16_t* p, Floats x) {
  vst1q_u16(p, vcombine_u16(RoundToBf16(x.v0), RoundToBf16(x.v1)));
  vst1q_u16(p + 8, vcombine_u16(RoundToBf16(x.v2), RoundToBf16(x.v3)));
}
inline Floats LoadInt8(const int8_t* p) {
  const int8x16_t x = vld1q_s8(p);
  const int16x8_t lo = vmovl_s8(vget_low_s8(x)), hi = vmovl_s8(vget_high_s8(x));
  return ToFloats({vmovl_s16(vget_low_s16(lo)), vmovl_s16(vget_high_s16(lo)), vmovl_s16(vget_low_s16(hi)),
                   vmovl_s16(vget_high_s16(hi))});
}
// Saturates to -128..127.
inline void StoreInt8(int8_t* p, Ints x) {
  const int16x8_t lo = vcombine_s16(vqmovn_s32(x.v0), vqmovn_s32(x.v1));
  const int16x8_t hi = vcombine_s16(vqmovn_s32(x.v2), vqmovn_s32(x.v3));
  vst1q_s8(p, vcombine_s8(vqmovn_s16(lo), vqmovn_s16(hi)));
}
inline Ints LoadUint8(const uint8_t* p) {
  const uint8x16_t x = vld1q_u8(p);
  const uint16x8_t lo = vmovl_u8(vget_low_u8(x)), hi = vmovl_u8(vget_high_u8(x));
  return {vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(lo))), vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(lo))),
          vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(hi))), vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(hi)))};
}

// The x86 vocabularies need 64-byte alignment here, and so do the callers.
inline Bytes LoadBytes(const uint8_t* p) { return {vld1q_u8(p), vld1q_u8(p + 16), vld1q_u8(p + 32), vld1q_u8(p + 48)}; }
inline void StoreBytes(uint8_t* p, Bytes x) {
  vst1q_u8(p, x.v0);
  vst1q_u8(p + 16, x.v1);
  vst1q_u8(p + 32, x.v2);
  vst1q_u8(p + 48, x.v3);
}
inline uint8x16_t LowQuarter(uint8x16_t x) { return vandq_u8(x, vdupq_n_u8(0x0f)); }
inline uint8x16_t HighQuarter(uint8x16_t x) { return vshrq_n_u8(x, 4); }
inline Bytes LowNibbles(Bytes x) { return GEMWORKS_EACH(LowQuarter, x); }
inline Bytes HighNibbles(Bytes x) { return GEMWORKS_EACH(HighQuarter, x); }
// Four signed activations, repeated for every lane.
inline Bytes RepeatFour(const int8_t* four) {
  uint32_t word;
  __builtin_memcpy(&word, four, 4);
  const uint8x16_t v = vreinterpretq_u8_u32(vdupq_n_u32(word));
  return {v, v, v, v};
}

inline int32x4_t DotSmallQuarter(int32x4_t acc, uint8x16_t w, uint8x16_t a) {
  return vdotq_s32(acc, vreinterpretq_s8_u8(w), vreinterpretq_s8_u8(a));
}
// Dot4 where w is at most 127, as nibbles are: the same as a signed number.
inline Ints DotSmall4(Ints acc, Bytes w, Bytes a) { return GEMWORKS_EACH3(DotSmallQuarter, acc, w, a); }

inline int32x4_t DotQuarter(int32x4_t acc, uint8x16_t w, uint8x16_t a) {
#if defined(__ARM_FEATURE_MATMUL_INT8)
  return vusdotq_s32(acc, w, vreinterpretq_s8_u8(a));
#else
  // The signed byte w ^ 0x80 is w - 128, so 128 * sum(a) is missing: taken off once more with the sign turned, since
  // -128 is a signed byte and 128 is not. It depends on a alone: one instruction for all registers and panels.
  const int32x4_t missing = vdotq_s32(vdupq_n_s32(0), vdupq_n_s8(-128), vreinterpretq_s8_u8(a));
  return vsubq_s32(DotSmallQuarter(acc, veorq_u8(w, vdupq_n_u8(0x80)), a), missing);
#endif
}
// acc[i] += sum over j of w[i][j] * a[i][j], w unsigned (at most 255), a signed. No saturation.
inline Ints Dot4(Ints acc, Bytes w, Bytes a) { return GEMWORKS_EACH3(DotQuarter, acc, w, a); }

// Ask for the line of p: into the first cache, and into the second. Inlined always: GCC takes a function that only
// prefetches for one without effect and drops calls of it.
inline __attribute__((always_inline)) void Prefetch(const void* p) { __builtin_prefetch(p); }
inline __attribute__((always_inline)) void PrefetchL2(const void* p) { __builtin_prefetch(p, 0, 2); }

#undef GEMWORKS_EACH
#undef GEMWORKS_EACH2
#undef GEMWORKS_EACH3

}  // namespace gemworks::neon
