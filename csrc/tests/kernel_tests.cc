// Tests of the native code without Python and XLA: one program, so that sanitizers and emulators can run it.
//
//     kernel_tests                  everything, on every instruction set that this CPU runs
//     kernel_tests simd linear      these groups only
//     kernel_tests --require NAME   fails where this CPU does not run NAME (the names of GEMWORKS_ISA)
//
// Ends with the number of cases and a hash of all results, which is the same on every machine. Exit status 1 after a
// failure, each named on standard error; 2 where it was called in a way it does not know.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "cases.h"
#include "check.h"
#include "cpu_features.h"
#include "pool.h"

namespace gemworks::test {
namespace {

constexpr const char* kGroups[] = {"simd", "linear", "blocks", "pool"};
constexpr int kThreads[] = {1, 2, 5};

constexpr uint64_t Bit(Feature feature) { return uint64_t{1} << static_cast<uint32_t>(feature); }

struct Isa {
  uint64_t needs;
  void (*simd)();
  const Kernels* kernels;
};

std::vector<Isa> Isas() {
#if defined(__aarch64__)
  return {{Bit(Feature::kNeon) | Bit(Feature::kDotProd), neon::TestSimd, NeonKernels()}};
#else
  const uint64_t avx512 = Bit(Feature::kAvx512F) | Bit(Feature::kAvx512BW) | Bit(Feature::kAvx512VL) | Bit(Feature::kAvx512Vnni);
  return {{avx512, avx512::TestSimd, Avx512Kernels()}, {Bit(Feature::kAvx2) | Bit(Feature::kFma), avx2::TestSimd, Avx2Kernels()}};
#endif
}

struct Options {
  std::vector<std::string> groups;
  std::vector<std::string> required;
  bool Wants(const char* group) const {
    if (groups.empty()) return true;
    for (const std::string& wanted : groups) {
      if (wanted == group) return true;
    }
    return false;
  }
};

Options Parse(int count, char** arguments) {
  Options options;
  for (int i = 1; i < count; ++i) {
    const std::string argument = arguments[i];
    bool known = argument == "--require" && i + 1 < count;
    if (known) options.required.push_back(arguments[++i]);
    for (const char* group : kGroups) {
      if (argument == group) options.groups.push_back(argument), known = true;
    }
    if (!known) {
      std::fprintf(stderr, "kernel_tests does not know \"%s\"; groups are simd, linear, blocks, pool\n", arguments[i]);
      std::exit(2);
    }
  }
  return options;
}

// Sleeping threads cannot hang a build: whoever waits for a lost one is killed.
void Run(const Options& options) {
  for (const Isa& isa : Isas()) {
    const char* name = isa.kernels->isa;
    if ((gemworks_cpu_features() & isa.needs) != isa.needs) {
      std::printf("not run: %s (this CPU has no such instructions)\n", name);
      for (const std::string& required : options.required) {
        Case("--require %s", required.c_str());
        if (required == name) Fail("this CPU does not run it");
      }
      continue;
    }
    std::printf("%s\n", name);
    std::fflush(stdout);
    if (options.Wants("simd")) isa.simd();
    for (int threads : kThreads) {
      Pool::SetThreads(threads);
      if (options.Wants("linear")) TestLinear(*isa.kernels);
      if (options.Wants("blocks")) TestBlocks(*isa.kernels);
    }
  }
  if (options.Wants("pool")) TestPool();
  Pool::SetThreads(1);
}

}  // namespace
}  // namespace gemworks::test

int main(int count, char** arguments) {
  using namespace gemworks::test;
  Run(Parse(count, arguments));
  std::printf("%d cases, %d failures, results %016llx\n", Cases(), Failures(), static_cast<unsigned long long>(Checksum()));
  return Failures() != 0;
}
