// One pool of threads for all kernels.
//
// A kernel is a body that every thread runs at once; inside it threads meet at barriers and share work by drawing
// tickets, so that a thread which the system holds up does less and nothing waits for a fixed share. Which thread
// computes what never changes a result: every number is computed whole by one of them.
//
// Between kernels the workers spin for a while (a decode step is a hundred kernels, microseconds apart) and then sleep.
// Threads: as many as the affinity mask and the container's quota allow (gemworks/cli/machine.py counts them;
// GEMWORKS_THREADS overrides); the caller's thread is one of them. XLA's own threads sleep meanwhile: a kernel is one
// operation of a compiled step, and the step waits for it.
#pragma once

#include <atomic>
#include <cstdint>
#include <type_traits>

namespace gemworks {

// Hands out 0, 1, 2 ... once each to whoever asks. One for each phase of a kernel.
struct alignas(64) Tickets {
  std::atomic<int64_t> next{0};
  __attribute__((always_inline)) int64_t Draw() { return next.fetch_add(1, std::memory_order_relaxed); }
};

class Pool {
 public:
  // The pool of this process, started on first use. After a fork the child starts its own.
  static Pool& Get();

  // Threads for pools started from here on; a running pool is stopped first. At least 1.
  static void SetThreads(int threads);

  int size() const { return size_; }

  // Calls body(thread) for thread = 0 .. size() - 1 and returns when all are done. Thread 0 is the caller. Calls from
  // several threads wait for one another.
  template <typename Body>
  void Run(Body&& body) {
    RunErased([](void* b, int thread) { (*static_cast<std::remove_reference_t<Body>*>(b))(thread); },
              const_cast<void*>(static_cast<const void*>(&body)));
  }

  // Inside a body: returns when every thread of the pool has called it as often. What was written before is visible.
  void Barrier();

 private:
  explicit Pool(int size);
  ~Pool();
  void RunErased(void (*body)(void*, int), void* argument);
  void Work(int thread);

  struct State;
  const int size_;
  State* state_;
};

}  // namespace gemworks
