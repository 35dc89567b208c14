// The groups of cases that kernel_tests.cc runs.
#pragma once

#include "kernels.h"

namespace gemworks {
namespace avx512 {
void TestSimd();
}
namespace avx512_bf16 {
void TestSimd();
}
namespace avx2 {
void TestSimd();
}
namespace neon {
void TestSimd();
}

namespace test {

// Each with the pool as it is; the caller changes the number of threads.
void TestLinear(const Kernels& kernels);
void TestBlocks(const Kernels& kernels);
void TestAttention(const Kernels& kernels);
void TestTower(const Kernels& kernels);
void TestPool();

}  // namespace test
}  // namespace gemworks
