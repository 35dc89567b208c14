// Which table of kernels serves this process, and one kernel at a time on the pool with a workspace.
#pragma once

#include <cstdint>
#include <mutex>

#include "cpu_features.h"
#include "kernels.h"
#include "pool.h"

namespace gemworks {

// The chosen table; never null once gemworks_configure has returned 0.
const Kernels* Chosen();

// A turn at the kernels. Operations of a compiled step may run at once; the pool and the workspace are one each.
class Turn {
 public:
  Turn();
  const Kernels& kernels() const { return *Chosen(); }
  Pool& pool() const { return Pool::Get(); }
  // At least `bytes` bytes, 64-byte aligned, whose contents are whatever was there. Grows and is kept.
  uint8_t* Workspace(int64_t bytes);

 private:
  std::lock_guard<std::mutex> lock_;
};

}  // namespace gemworks

// Chooses the table named `isa` ("avx512_vnni", "avx2", "neon"), or the widest this CPU has where isa is empty, and the
// number of threads. 0: done. 1: no such table in this library. 2: this CPU lacks it.
GEMWORKS_EXPORT int32_t gemworks_configure(const char* isa, int32_t threads);

// The name of the chosen table, or null.
GEMWORKS_EXPORT const char* gemworks_isa();
