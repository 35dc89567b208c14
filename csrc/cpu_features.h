// What this CPU can run and the operating system lets it run, found at run time.
#pragma once

#include <cstdint>

#if defined(_WIN32)
#define GEMWORKS_EXPORT extern "C" __declspec(dllexport)
#else
#define GEMWORKS_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace gemworks {

// Bit positions of the mask, x86 first; the names are in cpu_features.cc, in this order.
enum class Feature : uint32_t {
  kAvx2,
  kFma,
  kAvxVnni,
  kAvx512F,
  kAvx512BW,
  kAvx512VL,
  kAvx512Vnni,
  kAvx512Bf16,
  kAmxInt8,
  kAmxBf16,
  kNeon,
  kDotProd,
  kI8mm,
  kCount,
};

}  // namespace gemworks

// The number of this interface; gemworks/ops/native.py refuses a library with another one.
GEMWORKS_EXPORT int32_t gemworks_interface();

// Bit i is set where feature i may be used. Cheap, but not cached.
GEMWORKS_EXPORT uint64_t gemworks_cpu_features();

// The name of feature i as Linux and the compilers spell it, or null past the last one.
GEMWORKS_EXPORT const char* gemworks_cpu_feature_name(uint32_t i);
