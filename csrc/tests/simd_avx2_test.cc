#include "simd_avx2.h"

#include "simd_test.inl"
