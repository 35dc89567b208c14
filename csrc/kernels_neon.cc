// The kernels for arm64 with the dot product instructions (Armv8.2).
#include "simd_neon.h"

#include "kernels.inl"

const gemworks::Kernels* gemworks::NeonKernels() { return neon::Table(); }
