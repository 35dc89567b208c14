// The kernels for AVX2 with FMA and F16C.
#include "simd_avx2.h"

#include "kernels.inl"

const gemworks::Kernels* gemworks::Avx2Kernels() { return avx2::Table(); }
