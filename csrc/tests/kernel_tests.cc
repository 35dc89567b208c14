// Tests of the native code without Python and XLA: one program, so that sanitizers and emulators can run it.
//
//     kernel_tests                  everything, on every instruction set that this CPU runs
//     kernel_tests simd linear      these groups only
//     kernel_tests --require NAME   fails where this CPU does not run NAME (the names of GEMWORKS_ISA)
//
// Ends with the number of cases and a hash of all results, which is the same on every machine. Exit status 1 after a
// failure, each named on standard error; 2 where it was called in a way it does not know.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <set>
#include <string>

#include "cases.h"
#include "check.h"
#include "cpu_features.h"
#include "pool.h"

namespace gemworks::test {
namespace {

constexpr const char* kGroups[] = {"simd", "linear", "blocks", "attention", "tower", "pool"};
constexpr int kThreads[] = {1, 2, 5};

constexpr uint64_t Bit(Feature feature) { return uint64_t{1} << static_cast<uint32_t>(feature); }

constexpr uint64_t kVnni =
    Bit(Feature::kAvx512F) | Bit(Feature::kAvx512BW) | Bit(Feature::kAvx512VL) | Bit(Feature::kAvx512Vnni);

struct Isa {
  const char* name;
  uint64_t needs;
  void (*simd)();
  const Kernels* (*kernels)();  // not to be called where the CPU lacks what it needs
};

constexpr Isa kIsas[] = {
#if defined(__aarch64__)
    {"neon", Bit(Feature::kNeon) | Bit(Feature::kDotProd), neon::TestSimd, NeonKernels},
#else
    {"avx512_bf16", kVnni | Bit(Feature::kAvx512Bf16), avx512_bf16::TestSimd, Avx512Bf16Kernels},
    {"avx512_vnni", kVnni, avx512::TestSimd, Avx512Kernels},
    {"avx2", Bit(Feature::kAvx2) | Bit(Feature::kFma), avx2::TestSimd, Avx2Kernels},
#endif
};

struct Options {
  std::set<std::string> groups;
  std::set<std::string> required;
};

Options Parse(int count, char** arguments) {
  Options options;
  for (int i = 1; i < count; ++i) {
    const std::string argument = arguments[i];
    if (argument == "--require" && i + 1 < count) {
      options.required.insert(arguments[++i]);
    } else if (std::find(std::begin(kGroups), std::end(kGroups), argument) != std::end(kGroups)) {
      options.groups.insert(argument);
    } else {
      std::fprintf(stderr, "kernel_tests does not know \"%s\"; groups are simd, linear, blocks, attention, tower, pool\n", arguments[i]);
      std::exit(2);
    }
  }
  if (options.groups.empty()) options.groups.insert(std::begin(kGroups), std::end(kGroups));
  return options;
}

void Run(const Options& options) {
  std::set<std::string> missing = options.required;
  for (const Isa& isa : kIsas) {
    if ((gemworks_cpu_features() & isa.needs) != isa.needs) {
      std::printf("not run: %s (this CPU has no such instructions)\n", isa.name);
      continue;
    }
    missing.erase(isa.name);
    const Kernels& kernels = *isa.kernels();
    Case("%s table", isa.name);
    if (std::strcmp(kernels.isa, isa.name) != 0) Fail("calls itself %s", kernels.isa);
    std::printf("%s\n", isa.name);
    std::fflush(stdout);  // before a fork copies it
    if (options.groups.count("simd")) isa.simd();
    for (int threads : kThreads) {
      Pool::SetThreads(threads);
      if (options.groups.count("linear")) TestLinear(kernels);
      if (options.groups.count("blocks")) TestBlocks(kernels);
      if (options.groups.count("attention") && threads != 2) TestAttention(kernels);  // ten times the cases
      if (options.groups.count("tower") && threads != 2) TestTower(kernels);
    }
  }
  if (options.groups.count("pool")) TestPool();
  Pool::SetThreads(1);
  for (const std::string& name : missing) {
    Case("--require %s", name.c_str());
    Fail("this CPU does not run it, or this program has no such kernels");
  }
}

}  // namespace
}  // namespace gemworks::test

int main(int count, char** arguments) {
  using namespace gemworks::test;
  Run(Parse(count, arguments));
  std::printf("%d cases, %d failures, results %016llx\n", Cases(), Failures(), static_cast<unsigned long long>(Checksum()));
  return Failures() != 0;
}
