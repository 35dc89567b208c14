// The SIMD vocabulary of the kernels, for AVX-512 with VNNI. simd_avx2.h and simd_neon.h say the same in their terms.
//
// Everything is sixteen 32-bit lanes wide, whatever the registers are: one zmm here, two ymm, four q registers. `Bytes`
// is the same 64 bytes: sixteen groups of four. A kernel file is compiled once per vocabulary, in namespace GEMWORKS_NS.
#pragma once

#include <immintrin.h>

#include <cstdint>

// With GEMWORKS_BF16_DOTS defined before it, the same and products of bf16 pairs (AVX512-BF16), as a set of its own.
#if defined(GEMWORKS_BF16_DOTS)
#define GEMWORKS_NS avx512_bf16
#define GEMWORKS_ISA_NAME "avx512_bf16"
#else
#define GEMWORKS_NS avx512
#define GEMWORKS_ISA_NAME "avx512_vnni"
#endif
// Accumulators that fit the registers beside the operands: tokens x panels of a matrix-product tile (linear.inl).
#define GEMWORKS_TILE_TOKENS 6
#define GEMWORKS_TILE_PANELS 2

namespace gemworks::GEMWORKS_NS {

constexpr int kLanes = 16;

using Floats = __m512;
using Ints = __m512i;
using Bytes = __m512i;

inline Floats Zero() { return _mm512_setzero_ps(); }
inline Floats Set(float x) { return _mm512_set1_ps(x); }
inline Floats Load(const float* p) { return _mm512_loadu_ps(p); }
inline void Store(float* p, Floats x) { _mm512_storeu_ps(p, x); }
inline Floats Add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
inline Floats Sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
inline Floats Mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats Div(Floats a, Floats b) { return _mm512_div_ps(a, b); }
inline Floats Max(Floats a, Floats b) { return _mm512_max_ps(a, b); }
inline Floats Min(Floats a, Floats b) { return _mm512_min_ps(a, b); }
inline Floats Abs(Floats a) { return _mm512_abs_ps(a); }
// a * b + c, rounded once.
inline Floats MulAdd(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }

// The order of the additions is fixed: halves, quarters, eighths, pairs. The same in every vocabulary.
inline float Sum(Floats x) {
  const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(x), _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(x), 1)));
  const __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  const __m128 e = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(e, _mm_movehdup_ps(e)));
}
inline float Largest(Floats x) { return _mm512_reduce_max_ps(x); }
// Bit i is set where a[i] > b[i].
inline uint32_t Greater(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }

inline Ints ZeroInts() { return _mm512_setzero_si512(); }
inline Ints SetInts(int32_t x) { return _mm512_set1_epi32(x); }
inline Ints LoadInts(const int32_t* p) { return _mm512_loadu_si512(p); }
inline void StoreInts(int32_t* p, Ints x) { _mm512_storeu_si512(p, x); }
inline Ints AddInts(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
// Sum of the lanes, which must not overflow.
inline int32_t SumInts(Ints x) { return _mm512_reduce_add_epi32(x); }
inline Ints ShiftLeft(Ints a, int bits) { return _mm512_slli_epi32(a, bits); }
inline Ints ShiftRight(Ints a, int bits) { return _mm512_srli_epi32(a, bits); }  // zeros come in
// yes[i] where a[i] > b[i] (signed), else no[i].
inline Ints IfGreater(Ints a, Ints b, Ints yes, Ints no) {
  return _mm512_mask_mov_epi32(no, _mm512_cmpgt_epi32_mask(a, b), yes);
}
inline Ints Or(Ints a, Ints b) { return _mm512_or_si512(a, b); }
inline Ints And(Ints a, Ints b) { return _mm512_and_si512(a, b); }
inline Floats ToFloats(Ints a) { return _mm512_cvtepi32_ps(a); }
// To nearest, ties to even.
inline Ints ToInts(Floats a) { return _mm512_cvtps_epi32(a); }
inline Floats AsFloats(Ints a) { return _mm512_castsi512_ps(a); }
inline Ints AsInts(Floats a) { return _mm512_castps_si512(a); }

// The largest whole number that is not above.
inline Floats Floor(Floats a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
// a * 2^n for a whole n <= 127 and a in [1, 2): about 0 where n < -126.
inline Floats TimesPowerOf2(Floats a, Floats n) { return _mm512_scalef_ps(a, n); }
// Four times sixteen numbers of 0..255 -> lane i holds a[i], b[i], c[i], d[i], the first in its lowest byte.
inline Ints PackBytes(Ints a, Ints b, Ints c, Ints d) {
  const Ints order = _mm512_set4_epi32(0x0f0b0703, 0x0e0a0602, 0x0d090501, 0x0c080400);
  return _mm512_shuffle_epi8(_mm512_packus_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d)), order);
}

// Sixteen numbers stored in fewer bytes. Bf16 is written to nearest, ties to even; NaN stays NaN.
inline Floats LoadFp16(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline Floats LoadBf16(const uint16_t* p) {
  return AsFloats(ShiftLeft(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
}
inline void StoreBf16(uint16_t* p, Floats x) {
  const Ints bits = AsInts(x);
  const Ints odd = And(_mm512_srli_epi32(bits, 16), SetInts(1));
  const Ints rounded = _mm512_srli_epi32(AddInts(AddInts(bits, SetInts(0x7fff)), odd), 16);
  const Ints quiet = _mm512_or_si512(_mm512_srli_epi32(bits, 16), SetInts(0x40));
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, nan, quiet)));
}
inline Floats LoadInt8(const int8_t* p) {
  return ToFloats(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
// Saturates to -128..127.
inline void StoreInt8(int8_t* p, Ints x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(x)); }
inline Ints LoadUint8(const uint8_t* p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }

inline Bytes LoadBytes(const uint8_t* p) { return _mm512_load_si512(p); }  // 64-byte aligned
inline void StoreBytes(uint8_t* p, Bytes x) { _mm512_store_si512(p, x); }  // 64-byte aligned
inline Bytes LowNibbles(Bytes x) { return _mm512_and_si512(x, _mm512_set1_epi8(0x0f)); }
inline Bytes HighNibbles(Bytes x) { return _mm512_and_si512(_mm512_srli_epi16(x, 4), _mm512_set1_epi8(0x0f)); }
// Four signed activations, repeated for every lane.
inline Bytes RepeatFour(const int8_t* four) {
  int32_t word;
  __builtin_memcpy(&word, four, 4);
  return _mm512_set1_epi32(word);
}
// acc[i] += sum over j of w[i][j] * a[i][j], w unsigned (at most 255), a signed. No saturation.
inline Ints Dot4(Ints acc, Bytes w, Bytes a) { return _mm512_dpbusd_epi32(acc, w, a); }
// Dot4 where w is at most 127, as nibbles are: half the work where there is no such instruction (simd_avx2.h).
inline Ints DotSmall4(Ints acc, Bytes w, Bytes a) { return Dot4(acc, w, a); }

#if defined(GEMWORKS_BF16_DOTS)
// Lanes of two bf16 numbers, the even one in the low half. Numbers below 2^-126 count as zero here.
inline Ints LoadPairs(const uint16_t* even, const uint16_t* odd) {
  const Ints low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(even)));
  const Ints high = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(odd)));
  return Or(low, ShiftLeft(high, 16));
}
// To nearest, ties to even.
inline Ints ToPairs(Floats even, Floats odd) {
  alignas(64) static constexpr uint16_t kOrder[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16(_mm512_load_si512(kOrder), reinterpret_cast<Ints>(_mm512_cvtne2ps_pbh(odd, even)));
}
// acc[i] += a[i].even * b[i].even + a[i].odd * b[i].odd; two or three roundings, in an order that is the processor's.
inline Floats DotPairs(Floats acc, Ints a, Ints b) {
  return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}
#endif

// Ask for the line of p: into the first cache, and into the second. Inlined always: GCC takes a function that only
// prefetches for one without effect and drops calls of it.
inline __attribute__((always_inline)) void Prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
inline __attribute__((always_inline)) void PrefetchL2(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

}  // namespace gemworks::GEMWORKS_NS
