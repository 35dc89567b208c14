// What this machine can do at best: bytes read a second, multiply-adds a second. Plain C functions for ctypes.
#pragma once

#include <cstdint>

#include "cpu_features.h"

// Billions of bytes a second that `threads` threads read together from a buffer of `bytes`, for about `seconds`.
// 0 where the buffer cannot be had.
GEMWORKS_EXPORT double gemworks_peak_read_gbps(int32_t threads, uint64_t bytes, double seconds);

// Billions of 8-bit multiply-adds a second in registers. 0 where no variant is known for this CPU and compiler.
GEMWORKS_EXPORT double gemworks_peak_vnni_gmacs(int32_t threads, double seconds);

// Billions of fp32 multiply-adds a second in registers. 0 where no variant is known.
GEMWORKS_EXPORT double gemworks_peak_fma_gmacs(int32_t threads, double seconds);

// The instructions that the two measure here, as in "avx512_vnni vpdpbusd"; "not measured" where they return 0.
GEMWORKS_EXPORT const char* gemworks_peak_vnni_name();
GEMWORKS_EXPORT const char* gemworks_peak_fma_name();
