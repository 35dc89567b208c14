#include "dispatch.h"

#include <cstdlib>
#include <cstring>
#include <new>

namespace gemworks {
namespace {

std::mutex g_turn;
uint8_t* g_workspace = nullptr;
int64_t g_workspace_bytes = 0;
const Kernels* g_chosen = nullptr;

bool Has(uint64_t features, Feature feature) { return features >> static_cast<uint32_t>(feature) & 1; }

[[maybe_unused]] bool RunsVnni(uint64_t f) {
  return Has(f, Feature::kAvx512F) && Has(f, Feature::kAvx512BW) && Has(f, Feature::kAvx512VL) &&
         Has(f, Feature::kAvx512Vnni) && Has(f, Feature::kAvx2) && Has(f, Feature::kFma);
}

struct Table {
  const char* isa;
  const Kernels* (*kernels)();
  bool (*runs)(uint64_t features);
};

// Widest first.
constexpr Table kTables[] = {
#if defined(GEMWORKS_WITH_AVX512)
    {"avx512_bf16", Avx512Bf16Kernels, [](uint64_t f) { return RunsVnni(f) && Has(f, Feature::kAvx512Bf16); }},
    {"avx512_vnni", Avx512Kernels, RunsVnni},
    {"avx2", Avx2Kernels, [](uint64_t f) { return Has(f, Feature::kAvx2) && Has(f, Feature::kFma); }},
#elif defined(GEMWORKS_WITH_NEON)
    {"neon", NeonKernels, [](uint64_t f) { return Has(f, Feature::kNeon) && Has(f, Feature::kDotProd); }},
#else
    {"none", [] { return static_cast<const Kernels*>(nullptr); }, [](uint64_t) { return false; }},
#endif
};

}  // namespace

const Kernels* Chosen() { return g_chosen; }

Turn::Turn() : lock_(g_turn) {}

uint8_t* Turn::Workspace(int64_t bytes) {
  if (bytes > g_workspace_bytes) {
    std::free(g_workspace);
    g_workspace = static_cast<uint8_t*>(std::aligned_alloc(64, Aligned(bytes)));
    g_workspace_bytes = g_workspace == nullptr ? 0 : bytes;
    if (g_workspace == nullptr) throw std::bad_alloc();
  }
  return g_workspace;
}

}  // namespace gemworks

int32_t gemworks_configure(const char* isa, int32_t threads) {
  using namespace gemworks;
  const uint64_t features = gemworks_cpu_features();
  int32_t found = 1;
  for (const Table& table : kTables) {
    if (*isa != '\0' && std::strcmp(isa, table.isa) != 0) continue;
    found = 2;
    if (!table.runs(features)) continue;
    std::lock_guard<std::mutex> lock(g_turn);
    g_chosen = table.kernels();
    Pool::SetThreads(threads);
    return 0;
  }
  return found;
}

const char* gemworks_isa() { return gemworks::Chosen() == nullptr ? nullptr : gemworks::Chosen()->isa; }
