#include "simd_neon.h"

#include "simd_test.inl"
