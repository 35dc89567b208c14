// The ceilings that `gemworks bench cpu` divides by: read bandwidth, 8-bit and fp32 multiply-adds.
//
// Arithmetic: 12 independent chains of one instruction whose operands stay in registers. An instruction that takes 4 or
// 5 cycles and starts twice a cycle needs 8 or 10 chains to be always under way; 12 accumulators, 2 operands and 2
// temporaries are the 16 registers of AVX2. Multiply-adds of one step of one chain:
//
//     avx512_vnni  vpdpbusd zmm                        64      avx512f  vfmadd zmm   16
//     avx_vnni     vpdpbusd ymm                        32      fma      vfmadd ymm    8
//     avx2         vpmaddubsw vpmaddwd vpaddd          32      neon     fmla          4
//     dotprod      sdot                                16
//
// Bandwidth: each thread reads its own slice of a buffer that it touched first, front to back, a line of 64 bytes from
// each of four streams in turn. The buffer must be several times the last level of cache; the caller chooses it.
//
// Each variant is compiled for its instructions by an attribute and called only where the CPU has them. Not measured:
// anything with MSVC, which has no such attribute; the tiles of AMX and i8mm.

#include "peaks.h"

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__)
#define GEMWORKS_PEAKS_X86 1
#include <immintrin.h>
#elif defined(__aarch64__) && defined(__GNUC__)
#define GEMWORKS_PEAKS_ARM64 1
#include <arm_neon.h>
#endif

namespace gemworks {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kChains = 12;
constexpr int kTurns = 20000;  // 240,000 steps between two looks at the clock: 40 to 120 us
constexpr size_t kLine = 64;
constexpr size_t kStreams = 4;

// Where results go so that no loop is without effect.
std::atomic<uint64_t> g_sink{0};

// A measured loop: does a fixed amount of work and returns how much, in multiply-adds.
struct Variant {
  const char* name;
  double (*run)();
};

constexpr Variant kNone = {"not measured", nullptr};

// Runs prepare(thread) once and work(thread) over and over in threads that begin together, for about `seconds`.
// Returns what was done a second, all threads together.
template <typename Prepare, typename Work>
double Rate(int threads, double seconds, Prepare prepare, Work work) {
  std::vector<double> rates(static_cast<size_t>(threads), 0.0);
  std::atomic<int> ready{0};
  auto body = [&](int thread) {
    prepare(thread);
    work(thread);
    ready.fetch_add(1);
    while (ready.load() < threads) std::this_thread::yield();
    const auto start = Clock::now();
    double done = 0, elapsed = 0;
    do {
      done += work(thread);
      elapsed = std::chrono::duration<double>(Clock::now() - start).count();
    } while (elapsed < seconds);
    rates[static_cast<size_t>(thread)] = done / elapsed;
  };
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) others.emplace_back(body, i);
  body(0);
  for (auto& other : others) other.join();
  double sum = 0;
  for (double rate : rates) sum += rate;
  return sum;
}

[[maybe_unused]] bool Has(Feature feature) {
  return (gemworks_cpu_features() >> static_cast<uint32_t>(feature)) & 1;
}

// Makes the compiler believe that registers of the class CLASS changed.
#define GEMWORKS_HIDE3(CLASS, x, y, z) __asm__ volatile("" : "+" CLASS(x), "+" CLASS(y), "+" CLASS(z));

// A function that runs kTurns turns of kChains chains. STEP(c) is a statement, one step of chain c with operands a, b.
// Without hiding, chains that begin alike become one (GCC 12 left one vpdpbusd in the loop: 695 GMAC/s on a core that
// can do 234). On x86 the steps are assembly: from intrinsics GCC 12 moved every accumulator once a turn, in AVX2 by
// way of the stack (79 GMAC/s a core, and 118 without).
#define GEMWORKS_ARITHMETIC(NAME, TARGET, TYPE, LOAD, CLASS, STEP, MACS)                        \
  TARGET double NAME() {                                                                        \
    alignas(64) uint8_t bytes[kChains * 64] = {};                                               \
    std::memset(bytes, 1, sizeof(bytes));                                                       \
    TYPE a = LOAD(bytes), b = LOAD(bytes);                                                      \
    TYPE c0 = a, c1 = a, c2 = a, c3 = a, c4 = a, c5 = a;                                        \
    TYPE c6 = a, c7 = a, c8 = a, c9 = a, c10 = a, c11 = a;                                      \
    GEMWORKS_HIDE3(CLASS, c0, c1, c2) GEMWORKS_HIDE3(CLASS, c3, c4, c5)                         \
    GEMWORKS_HIDE3(CLASS, c6, c7, c8) GEMWORKS_HIDE3(CLASS, c9, c10, c11)                       \
    for (int turn = 0; turn < kTurns; ++turn) {                                                 \
      STEP(c0) STEP(c1) STEP(c2) STEP(c3) STEP(c4) STEP(c5)                                     \
      STEP(c6) STEP(c7) STEP(c8) STEP(c9) STEP(c10) STEP(c11)                                   \
    }                                                                                           \
    const TYPE all[kChains] = {c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11};               \
    static_assert(sizeof(all) <= sizeof(bytes), "an accumulator is at most a line");            \
    std::memcpy(bytes, all, sizeof(all));                                                       \
    uint64_t sum = 0;                                                                           \
    for (size_t i = 0; i < sizeof(all); ++i) sum += bytes[i];                                   \
    g_sink.fetch_add(sum, std::memory_order_relaxed);                                           \
    return double{MACS} * kChains * kTurns;                                                     \
  }

#if defined(GEMWORKS_PEAKS_X86)

#define GEMWORKS_TARGET(t) __attribute__((target(t)))
#define GEMWORKS_LOAD512I(p) _mm512_load_si512(p)
#define GEMWORKS_LOAD256I(p) _mm256_load_si256(reinterpret_cast<const __m256i*>(p))
#define GEMWORKS_LOAD512F(p) _mm512_load_ps(p)
#define GEMWORKS_LOAD256F(p) _mm256_load_ps(reinterpret_cast<const float*>(p))
#define GEMWORKS_DPBUSD512(c) __asm__ volatile("vpdpbusd %1, %2, %0" : "+v"(c) : "v"(a), "v"(b));
#define GEMWORKS_DPBUSD256(c) __asm__ volatile("%{vex%} vpdpbusd %1, %2, %0" : "+x"(c) : "x"(a), "x"(b));
#define GEMWORKS_MADD256(c)                                                                      \
  {                                                                                              \
    __m256i t;                                                                                   \
    __asm__ volatile("vpmaddubsw %2, %0, %1\n\tvpmaddwd %3, %1, %1\n\tvpaddd %1, %0, %0"         \
                     : "+x"(c), "=&x"(t)                                                         \
                     : "x"(a), "x"(b));                                                          \
  }
#define GEMWORKS_FMA(c, CLASS) __asm__ volatile("vfmadd231ps %1, %2, %0" : "+" CLASS(c) : CLASS(a), CLASS(b));
#define GEMWORKS_FMA512(c) GEMWORKS_FMA(c, "v")
#define GEMWORKS_FMA256(c) GEMWORKS_FMA(c, "x")

GEMWORKS_ARITHMETIC(Vnni512, GEMWORKS_TARGET("avx512f,avx512bw,avx512vnni"), __m512i, GEMWORKS_LOAD512I, "v",
                    GEMWORKS_DPBUSD512, 64)
#if !defined(__clang__) ? __GNUC__ >= 11 : __clang_major__ >= 12
#define GEMWORKS_PEAKS_AVX_VNNI 1
GEMWORKS_ARITHMETIC(Vnni256, GEMWORKS_TARGET("avx2,avxvnni"), __m256i, GEMWORKS_LOAD256I, "x", GEMWORKS_DPBUSD256, 32)
#endif
GEMWORKS_ARITHMETIC(Madd256, GEMWORKS_TARGET("avx2"), __m256i, GEMWORKS_LOAD256I, "x", GEMWORKS_MADD256, 32)
GEMWORKS_ARITHMETIC(Fma512, GEMWORKS_TARGET("avx512f"), __m512, GEMWORKS_LOAD512F, "v", GEMWORKS_FMA512, 16)
GEMWORKS_ARITHMETIC(Fma256, GEMWORKS_TARGET("avx2,fma"), __m256, GEMWORKS_LOAD256F, "x", GEMWORKS_FMA256, 8)

Variant Int8Variant() {
  if (Has(Feature::kAvx512BW) && Has(Feature::kAvx512Vnni)) return {"avx512_vnni vpdpbusd zmm", Vnni512};
#if defined(GEMWORKS_PEAKS_AVX_VNNI)
  if (Has(Feature::kAvxVnni)) return {"avx_vnni vpdpbusd ymm", Vnni256};
#endif
  if (Has(Feature::kAvx2)) return {"avx2 vpmaddubsw", Madd256};
  return kNone;
}

Variant FmaVariant() {
  if (Has(Feature::kAvx512F)) return {"avx512f vfmadd zmm", Fma512};
  if (Has(Feature::kAvx2) && Has(Feature::kFma)) return {"fma vfmadd ymm", Fma256};
  return kNone;
}

#elif defined(GEMWORKS_PEAKS_ARM64)

#define GEMWORKS_LOADI(p) vreinterpretq_s32_s8(vld1q_s8(reinterpret_cast<const int8_t*>(p)))
#define GEMWORKS_LOADF(p) vld1q_f32(reinterpret_cast<const float*>(p))
#define GEMWORKS_SDOT(c) \
  c = vdotq_s32(c, vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b)); \
  __asm__ volatile("" : "+w"(c));
#define GEMWORKS_FMLA(c) \
  c = vfmaq_f32(c, a, b); \
  __asm__ volatile("" : "+w"(c));

GEMWORKS_ARITHMETIC(DotNeon, __attribute__((target("arch=armv8.2-a+dotprod"))), int32x4_t, GEMWORKS_LOADI, "w",
                    GEMWORKS_SDOT, 16)
GEMWORKS_ARITHMETIC(FmaNeon, , float32x4_t, GEMWORKS_LOADF, "w", GEMWORKS_FMLA, 4)

Variant Int8Variant() { return Has(Feature::kDotProd) ? Variant{"dotprod sdot", DotNeon} : kNone; }
Variant FmaVariant() { return {"neon fmla", FmaNeon}; }

#else

Variant Int8Variant() { return kNone; }
Variant FmaVariant() { return kNone; }

#endif

double ArithmeticGmacs(const Variant& variant, int threads, double seconds) {
  if (variant.run == nullptr || threads < 1) return 0;
  return Rate(threads, seconds, [](int) {}, [&](int) { return variant.run(); }) / 1e9;
}

// XOR of `lines` lines from each of four streams; p and stride are multiples of a line.
#if defined(GEMWORKS_PEAKS_X86)
GEMWORKS_TARGET("avx512f") uint64_t Read512(const uint8_t* p, size_t lines, size_t stride) {
  __m512i x0 = _mm512_setzero_si512(), x1 = x0, x2 = x0, x3 = x0;
  for (size_t i = 0; i < lines; ++i, p += kLine) {
    x0 = _mm512_xor_si512(x0, _mm512_load_si512(p));
    x1 = _mm512_xor_si512(x1, _mm512_load_si512(p + stride));
    x2 = _mm512_xor_si512(x2, _mm512_load_si512(p + 2 * stride));
    x3 = _mm512_xor_si512(x3, _mm512_load_si512(p + 3 * stride));
  }
  const __m512i x = _mm512_xor_si512(_mm512_xor_si512(x0, x1), _mm512_xor_si512(x2, x3));
  alignas(64) uint64_t words[8];
  _mm512_store_si512(words, x);
  return words[0];
}
#endif

// The same in the base instruction set: 16 bytes a load, of which every CPU can have enough under way.
uint64_t ReadPlain(const uint8_t* p, size_t lines, size_t stride) {
  uint64_t x[kLine / 8] = {};
  for (size_t i = 0; i < lines; ++i, p += kLine) {
    for (size_t s = 0; s < kStreams; ++s) {
      uint64_t words[kLine / 8];
      std::memcpy(words, p + s * stride, kLine);
      for (size_t w = 0; w < kLine / 8; ++w) x[w] ^= words[w];
    }
  }
  uint64_t sum = 0;
  for (uint64_t word : x) sum ^= word;
  return sum;
}

double ReadGbps(int threads, uint64_t bytes, double seconds) {
  const size_t stride = static_cast<size_t>(bytes) / static_cast<size_t>(threads) / kStreams / kLine * kLine;
  const size_t slice = stride * kStreams;
  uint8_t* raw = static_cast<uint8_t*>(std::malloc(slice * static_cast<size_t>(threads) + kLine));
  if (raw == nullptr || stride == 0) {
    std::free(raw);
    return 0;
  }
  uint8_t* base = raw + (kLine - reinterpret_cast<uintptr_t>(raw) % kLine) % kLine;
  auto read = ReadPlain;
#if defined(GEMWORKS_PEAKS_X86)
  if (Has(Feature::kAvx512F)) read = Read512;
#endif
  const double rate = Rate(
      threads, seconds, [&](int thread) { std::memset(base + slice * static_cast<size_t>(thread), thread + 1, slice); },
      [&](int thread) {
        const uint64_t x = read(base + slice * static_cast<size_t>(thread), stride / kLine, stride);
        g_sink.fetch_add(x, std::memory_order_relaxed);
        return static_cast<double>(slice);
      });
  std::free(raw);
  return rate / 1e9;
}

}  // namespace
}  // namespace gemworks

double gemworks_peak_read_gbps(int32_t threads, uint64_t bytes, double seconds) {
  return threads < 1 ? 0 : gemworks::ReadGbps(threads, bytes, seconds);
}

double gemworks_peak_vnni_gmacs(int32_t threads, double seconds) {
  return gemworks::ArithmeticGmacs(gemworks::Int8Variant(), threads, seconds);
}

double gemworks_peak_fma_gmacs(int32_t threads, double seconds) {
  return gemworks::ArithmeticGmacs(gemworks::FmaVariant(), threads, seconds);
}

const char* gemworks_peak_vnni_name() { return gemworks::Int8Variant().name; }

const char* gemworks_peak_fma_name() { return gemworks::FmaVariant().name; }
