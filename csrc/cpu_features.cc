// CPUID (x86) and the kernel's hardware capabilities (arm64).
//
// An instruction set counts only if the operating system saves its registers when it switches threads. On x86 it says
// so in XCR0, read by XGETBV:
//
//   bit  1 SSE  2 AVX  5 AVX-512 masks  6 upper halves of zmm0-15  7 zmm16-31  17 tile configuration  18 tiles
//
// AMX here means that the kernel saves tiles. A Linux process must still ask for them once
// (arch_prctl ARCH_REQ_XCOMP_PERM) before its first tile instruction; whoever runs AMX code does that.
//
// Not here: cache sizes, core counts, which kernel to choose (gemworks/ops/select.py).

#include "cpu_features.h"

#if defined(__x86_64__) || defined(_M_X64)
#define GEMWORKS_X86 1
#if defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#elif defined(__aarch64__) || defined(_M_ARM64)
#define GEMWORKS_ARM64 1
#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif
#endif

namespace gemworks {
namespace {

constexpr const char* kNames[] = {
    "avx2",        "fma",         "avx_vnni", "avx512f",  "avx512bw", "avx512vl", "avx512_vnni",
    "avx512_bf16", "amx_int8",    "amx_bf16", "neon",     "dotprod",  "i8mm",
};
constexpr uint32_t kCount = static_cast<uint32_t>(Feature::kCount);
static_assert(sizeof(kNames) / sizeof(kNames[0]) == kCount, "one name per feature");

class Mask {
 public:
  void Set(Feature feature, bool present) {
    if (present) bits_ |= uint64_t{1} << static_cast<uint32_t>(feature);
  }
  uint64_t bits() const { return bits_; }

 private:
  uint64_t bits_ = 0;
};

[[maybe_unused]] constexpr bool Bit(uint64_t word, int i) { return (word >> i) & 1; }

#if defined(GEMWORKS_X86)

struct Registers {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

// All zero where the CPU has no such leaf.
Registers Cpuid(uint32_t leaf, uint32_t subleaf) {
  Registers r;
#if defined(_MSC_VER) && !defined(__clang__)
  int words[4];
  __cpuid(words, 0);
  if (static_cast<uint32_t>(words[0]) < leaf) return r;
  __cpuidex(words, static_cast<int>(leaf), static_cast<int>(subleaf));
  r = {static_cast<uint32_t>(words[0]), static_cast<uint32_t>(words[1]), static_cast<uint32_t>(words[2]),
       static_cast<uint32_t>(words[3])};
#else
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
#endif
  return r;
}

// XCR0. Only where CPUID.1:ECX.OSXSAVE is set; elsewhere XGETBV is an illegal instruction.
uint64_t EnabledState() {
#if defined(_MSC_VER) && !defined(__clang__)
  return _xgetbv(0);
#else
  // The opcode by hand: the intrinsic needs -mxsave, which would let the compiler use XSAVE anywhere in this file.
  uint32_t low, high;
  __asm__ volatile(".byte 0x0f, 0x01, 0xd0" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t{high} << 32) | low;
#endif
}

uint64_t Detect() {
  Mask mask;
  const Registers leaf1 = Cpuid(1, 0);
  if (!Bit(leaf1.ecx, 27)) return mask.bits();
  const uint64_t state = EnabledState();
  const bool ymm = (state & 0x6) == 0x6;
  const bool zmm = ymm && (state & 0xe0) == 0xe0;
  const bool tiles = (state & 0x60000) == 0x60000;

  const Registers leaf7 = Cpuid(7, 0);
  // EAX of sub-leaf 0 is the last sub-leaf.
  const Registers leaf7_1 = leaf7.eax >= 1 ? Cpuid(7, 1) : Registers{};
  const bool avx512f = zmm && Bit(leaf7.ebx, 16);

  mask.Set(Feature::kFma, ymm && Bit(leaf1.ecx, 12));
  mask.Set(Feature::kAvx2, ymm && Bit(leaf7.ebx, 5));
  mask.Set(Feature::kAvxVnni, ymm && Bit(leaf7_1.eax, 4));
  mask.Set(Feature::kAvx512F, avx512f);
  mask.Set(Feature::kAvx512BW, avx512f && Bit(leaf7.ebx, 30));
  mask.Set(Feature::kAvx512VL, avx512f && Bit(leaf7.ebx, 31));
  mask.Set(Feature::kAvx512Vnni, avx512f && Bit(leaf7.ecx, 11));
  mask.Set(Feature::kAvx512Bf16, avx512f && Bit(leaf7_1.eax, 5));
  mask.Set(Feature::kAmxBf16, tiles && Bit(leaf7.edx, 22));
  mask.Set(Feature::kAmxInt8, tiles && Bit(leaf7.edx, 25));
  return mask.bits();
}

#elif defined(GEMWORKS_ARM64) && defined(__linux__)

uint64_t Detect() {
  Mask mask;
  const uint64_t capabilities = getauxval(AT_HWCAP);
  const uint64_t capabilities2 = getauxval(AT_HWCAP2);
  mask.Set(Feature::kNeon, Bit(capabilities, 1));      // HWCAP_ASIMD
  mask.Set(Feature::kDotProd, Bit(capabilities, 20));  // HWCAP_ASIMDDP
  mask.Set(Feature::kI8mm, Bit(capabilities2, 13));    // HWCAP2_I8MM
  return mask.bits();
}

#elif defined(GEMWORKS_ARM64) && defined(__APPLE__)

bool HasSysctl(const char* name) {
  int value = 0;
  size_t size = sizeof(value);
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}

uint64_t Detect() {
  Mask mask;
  mask.Set(Feature::kNeon, true);  // every arm64 Mac
  mask.Set(Feature::kDotProd, HasSysctl("hw.optional.arm.FEAT_DotProd"));
  mask.Set(Feature::kI8mm, HasSysctl("hw.optional.arm.FEAT_I8MM"));
  return mask.bits();
}

#else

uint64_t Detect() { return 0; }

#endif

}  // namespace
}  // namespace gemworks

int32_t gemworks_interface() { return 2; }

uint64_t gemworks_cpu_features() { return gemworks::Detect(); }

const char* gemworks_cpu_feature_name(uint32_t i) { return i < gemworks::kCount ? gemworks::kNames[i] : nullptr; }
