// The kernels for AVX-512 with VNNI.
#include "simd_avx512.h"

#include "kernels.inl"

const gemworks::Kernels* gemworks::Avx512Kernels() { return avx512::Table(); }
