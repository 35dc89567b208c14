// The kernels for AVX-512 with VNNI and BF16: attention of chunks on bf16 pools multiplies bf16 pairs, all else is the
// table for AVX-512 with VNNI.
#define GEMWORKS_BF16_DOTS
#include "simd_avx512.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels.h"
#include "pool.h"

namespace gemworks::avx512_bf16 {

#include "math.inl"
#include "attention.inl"

}  // namespace gemworks::avx512_bf16

const gemworks::Kernels* gemworks::Avx512Bf16Kernels() {
  static const Kernels kTable = [] {
    Kernels k = *Avx512Kernels();
    k.isa = GEMWORKS_ISA_NAME;
    k.attend = avx512_bf16::Attend;
    return k;
  }();
  return &kTable;
}
