// The SIMD vocabulary of the kernels, for AVX2 with FMA and F16C: Intel since 2013, AMD since 2015.
//
// Two ymm registers for every value, so half as many values fit as in simd_avx512.h. Each function gives the same bits
// there and here (csrc/tests/simd_test.inl), ToInts of what no int32 holds included.
#pragma once

#include <immintrin.h>

#include <cstdint>

#define GEMWORKS_NS avx2
#define GEMWORKS_ISA_NAME "avx2"
// Six of the sixteen registers accumulate; four hold a line split for Dot4, two the activations, the rest is in flight.
// 80 G products a second in int4-b32 and 43 in int8-b32 on a core of an EPYC 9004; 2 x 2 and 4 x 1 are within 4 %.
#define GEMWORKS_TILE_TOKENS 3
#define GEMWORKS_TILE_PANELS 1

namespace gemworks::avx2 {

constexpr int kLanes = 16;

// `lo` is lanes 0..7. Bytes: `lo` is groups 0..7.
struct Floats {
  __m256 lo, hi;
};
struct Ints {
  __m256i lo, hi;
};
using Bytes = Ints;

inline Floats Zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Floats Set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Floats Load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void Store(float* p, Floats x) {
  _mm256_storeu_ps(p, x.lo);
  _mm256_storeu_ps(p + 8, x.hi);
}
inline Floats Add(Floats a, Floats b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline Floats Sub(Floats a, Floats b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline Floats Mul(Floats a, Floats b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline Floats Div(Floats a, Floats b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
// a where a > b, otherwise b: what x86 does with NaN and with zeros of either sign.
inline Floats Max(Floats a, Floats b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
// a where a < b, otherwise b.
inline Floats Min(Floats a, Floats b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
inline Floats Abs(Floats a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
// a * b + c, rounded once.
inline Floats MulAdd(Floats a, Floats b, Floats c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}

// The order of the additions is fixed: halves, quarters, eighths, pairs. The same in every vocabulary.
inline float Sum(Floats x) {
  const __m256 h = _mm256_add_ps(x.lo, x.hi);
  const __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  const __m128 e = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(e, _mm_movehdup_ps(e)));
}
inline float Largest(Floats x) {
  const __m256 h = _mm256_max_ps(x.lo, x.hi);
  const __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  const __m128 e = _mm_max_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_max_ss(e, _mm_movehdup_ps(e)));
}
// Bit i is set where a[i] > b[i].
inline uint32_t Greater(Floats a, Floats b) {
  const int lo = _mm256_movemask_ps(_mm256_cmp_ps(a.lo, b.lo, _CMP_GT_OQ));
  const int hi = _mm256_movemask_ps(_mm256_cmp_ps(a.hi, b.hi, _CMP_GT_OQ));
  return static_cast<uint32_t>(lo | hi << 8);
}

inline __m256i LoadHalf(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline __m128i LoadQuarter(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }

inline Ints ZeroInts() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline Ints SetInts(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline Ints LoadInts(const int32_t* p) { return {LoadHalf(p), LoadHalf(p + 8)}; }
inline void StoreInts(int32_t* p, Ints x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.lo);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), x.hi);
}
inline Ints AddInts(Ints a, Ints b) { return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
// Sum of the lanes, which must not overflow.
inline int32_t SumInts(Ints x) {
  const __m256i h = _mm256_add_epi32(x.lo, x.hi);
  const __m128i q = _mm_add_epi32(_mm256_castsi256_si128(h), _mm256_extracti128_si256(h, 1));
  const __m128i e = _mm_add_epi32(q, _mm_unpackhi_epi64(q, q));
  return _mm_cvtsi128_si32(_mm_add_epi32(e, _mm_shuffle_epi32(e, 1)));
}
inline Ints ShiftLeft(Ints a, int bits) { return {_mm256_slli_epi32(a.lo, bits), _mm256_slli_epi32(a.hi, bits)}; }
inline Ints ShiftRight(Ints a, int bits) {  // zeros come in
  return {_mm256_srli_epi32(a.lo, bits), _mm256_srli_epi32(a.hi, bits)};
}
inline __m256i IfGreaterHalf(__m256i a, __m256i b, __m256i yes, __m256i no) {
  return _mm256_blendv_epi8(no, yes, _mm256_cmpgt_epi32(a, b));
}
// yes where a > b, otherwise no.
inline Ints IfGreater(Ints a, Ints b, Ints yes, Ints no) {
  return {IfGreaterHalf(a.lo, b.lo, yes.lo, no.lo), IfGreaterHalf(a.hi, b.hi, yes.hi, no.hi)};
}
inline Ints Or(Ints a, Ints b) { return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)}; }
inline Ints And(Ints a, Ints b) { return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)}; }
inline Floats ToFloats(Ints a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
// To nearest, ties to even. NaN and what no int32 holds become the smallest int32, as x86 has it.
inline Ints ToInts(Floats a) { return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)}; }
inline Floats AsFloats(Ints a) { return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)}; }
inline Ints AsInts(Floats a) { return {_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)}; }

// The largest whole number that is not above.
inline Floats Floor(Floats a) { return {_mm256_floor_ps(a.lo), _mm256_floor_ps(a.hi)}; }
inline __m256 TimesPowerOf2Half(__m256 a, __m256 n) {
  const __m256i whole = _mm256_cvtps_epi32(_mm256_max_ps(n, _mm256_set1_ps(-127.0f)));
  return _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(whole, _mm256_set1_epi32(127)), 23)));
}
// a * 2^n for a whole n <= 127 and a in [1, 2): about 0 where n < -126.
inline Floats TimesPowerOf2(Floats a, Floats n) { return {TimesPowerOf2Half(a.lo, n.lo), TimesPowerOf2Half(a.hi, n.hi)}; }
inline __m256i PackBytesHalf(__m256i a, __m256i b, __m256i c, __m256i d) {
  const __m256i order = _mm256_setr_epi32(0x0c080400, 0x0d090501, 0x0e0a0602, 0x0f0b0703, 0x0c080400, 0x0d090501,
                                          0x0e0a0602, 0x0f0b0703);
  return _mm256_shuffle_epi8(_mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d)), order);
}
// Four times sixteen numbers of 0..255 -> lane i holds a[i], b[i], c[i], d[i], the first in its lowest byte.
inline Ints PackBytes(Ints a, Ints b, Ints c, Ints d) {
  return {PackBytesHalf(a.lo, b.lo, c.lo, d.lo), PackBytesHalf(a.hi, b.hi, c.hi, d.hi)};
}

// Sixteen numbers stored in fewer bytes. Bf16 is written to nearest, ties to even; NaN stays NaN.
inline Floats LoadFp16(const uint16_t* p) { return {_mm256_cvtph_ps(LoadQuarter(p)), _mm256_cvtph_ps(LoadQuarter(p + 8))}; }
inline Floats LoadBf16(const uint16_t* p) {
  return AsFloats(ShiftLeft({_mm256_cvtepu16_epi32(LoadQuarter(p)), _mm256_cvtepu16_epi32(LoadQuarter(p + 8))}, 16));
}
// Bits of eight numbers -> their bf16 in the low half of each lane.
inline __m256i RoundToBf16(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i top = _mm256_srli_epi32(bits, 16);
  const __m256i half = _mm256_add_epi32(_mm256_set1_epi32(0x7fff), _mm256_and_si256(top, _mm256_set1_epi32(1)));
  const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, half), 16);
  const __m256i quiet = _mm256_or_si256(top, _mm256_set1_epi32(0x40));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(rounded, quiet, nan);
}
inline void StoreBf16(uint16_t* p, Floats x) {
  // The pack works inside 128-bit lanes: quarters 0 2 1 3 have to be put back in order.
  const __m256i mixed = _mm256_packus_epi32(RoundToBf16(x.lo), RoundToBf16(x.hi));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(mixed, 0xd8));
}
inline Floats LoadInt8(const int8_t* p) {
  const __m128i x = LoadQuarter(p);
  return ToFloats({_mm256_cvtepi8_epi32(x), _mm256_cvtepi8_epi32(_mm_srli_si128(x, 8))});
}
// Saturates to -128..127.
inline void StoreInt8(int8_t* p, Ints x) {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.lo, x.hi), 0xd8);
  const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}
inline Ints LoadUint8(const uint8_t* p) {
  const __m128i x = LoadQuarter(p);
  return {_mm256_cvtepu8_epi32(x), _mm256_cvtepu8_epi32(_mm_srli_si128(x, 8))};
}

inline Bytes LoadBytes(const uint8_t* p) {  // 64-byte aligned
  const __m256i* line = reinterpret_cast<const __m256i*>(p);
  return {_mm256_load_si256(line), _mm256_load_si256(line + 1)};
}
inline void StoreBytes(uint8_t* p, Bytes x) {  // 64-byte aligned
  _mm256_store_si256(reinterpret_cast<__m256i*>(p), x.lo);
  _mm256_store_si256(reinterpret_cast<__m256i*>(p) + 1, x.hi);
}
inline Bytes LowNibbles(Bytes x) {
  const __m256i mask = _mm256_set1_epi8(0x0f);
  return {_mm256_and_si256(x.lo, mask), _mm256_and_si256(x.hi, mask)};
}
inline Bytes HighNibbles(Bytes x) { return LowNibbles({_mm256_srli_epi16(x.lo, 4), _mm256_srli_epi16(x.hi, 4)}); }
// Four signed activations, repeated for every lane.
inline Bytes RepeatFour(const int8_t* four) {
  int32_t word;
  __builtin_memcpy(&word, four, 4);
  return SetInts(word);
}

// Columns 0 and 2 of each group as 16-bit numbers, and columns 1 and 3: vpmaddwd then multiplies and adds pairs.
inline __m256i EvenUnsigned(__m256i x) { return _mm256_and_si256(x, _mm256_set1_epi16(0x00ff)); }
inline __m256i OddUnsigned(__m256i x) { return _mm256_srli_epi16(x, 8); }
inline __m256i EvenSigned(__m256i x) { return _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8); }
inline __m256i OddSigned(__m256i x) { return _mm256_srai_epi16(x, 8); }
inline __m256i DotHalf(__m256i acc, __m256i w, __m256i a) {
  const __m256i even = _mm256_madd_epi16(EvenUnsigned(w), EvenSigned(a));
  const __m256i odd = _mm256_madd_epi16(OddUnsigned(w), OddSigned(a));
  return _mm256_add_epi32(acc, _mm256_add_epi32(even, odd));
}
// acc[i] += sum over j of w[i][j] * a[i][j], w unsigned (at most 255), a signed. No saturation.
//
// vpmaddubsw, made for this, adds two products of up to 255 * 128 in 16 bits and saturates. Widened to 16 bits first,
// every product fits and vpmaddwd adds them in 32: exact for all w and a. The widening of w is shared by the tokens of
// a tile and that of a by its panels. 74 G products a second at 3 tokens on one core of an EPYC 9004 (AVX2 only); two
// vpmaddubsw on the top bit and the rest of w 55, unpacking to 16 bits and vphaddd 44.
inline Ints Dot4(Ints acc, Bytes w, Bytes a) { return {DotHalf(acc.lo, w.lo, a.lo), DotHalf(acc.hi, w.hi, a.hi)}; }

inline __m256i DotSmallHalf(__m256i acc, __m256i w, __m256i a) {
  return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(w, a), _mm256_set1_epi16(1)));
}
// Dot4 where w is at most 127, as nibbles are: 2 * 127 * 128 = 32,512 fits 16 bits, so vpmaddubsw is exact. 109 G
// products a second where Dot4 has 67 on nibbles.
inline Ints DotSmall4(Ints acc, Bytes w, Bytes a) {
  return {DotSmallHalf(acc.lo, w.lo, a.lo), DotSmallHalf(acc.hi, w.hi, a.hi)};
}

// Ask for the line of p: into the first cache, and into the second. Inlined always: GCC takes a function that only
// prefetches for one without effect and drops calls of it.
inline __attribute__((always_inline)) void Prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
inline __attribute__((always_inline)) void PrefetchL2(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

}  // namespace gemworks::avx2
