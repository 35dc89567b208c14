#define GEMWORKS_BF16_DOTS
#include "simd_avx512.h"

#include "simd_test.inl"
