// One pool of threads for all kernels.
//
// A kernel is a body that the caller runs and every free thread of the pool joins. Its work is in phases: items that are
// drawn one by one, and a phase is over when its items are done, not when every thread has come. So a thread that the
// system holds up (another program, or a thread of XLA's on its core) does less and nobody waits for it, unless it holds
// an item. Which thread computes what never changes a result: every number is computed whole by one of them.
//
// Between kernels the workers spin for a while (a decode step is a hundred kernels, microseconds apart) and then sleep.
// Whoever spins gives its core away every few turns: XLA runs a step's kernels from threads of its own, which would
// otherwise wait for a core until the system notices. Both together took decode of 270M on two cores from 14.2 to 10.3 ms
// a token.
// Threads: as many as the affinity mask and the container's quota allow (gemworks/machine.py counts them;
// GEMWORKS_THREADS overrides); the caller's thread is one of them.
#pragma once

#include <atomic>
#include <cstdint>
#include <type_traits>

namespace gemworks {

// The items of one phase: handed out once each, and counted when done.
class Phase {
 public:
  explicit Phase(int64_t items) : items_(items) {}

  // Calls body(item) for every item this thread draws, and returns when all items are done by whoever drew them; what
  // was written for them is visible then. Every thread of a body calls it, in the same order for all phases.
  template <typename Body>
  __attribute__((always_inline)) void Share(Body&& body) {
    int64_t mine = 0;
    for (int64_t i = Draw(); i < items_; i = Draw(), ++mine) body(i);
    Await(mine);
  }

  // The same for a body(item, next) that may want to know which item this thread does next, to ask memory for it; -1
  // where there is none, and without `ahead`. With it a thread holds two items at a time, and the last ones are shared
  // out less evenly.
  template <typename Body>
  __attribute__((always_inline)) void ShareAhead(bool ahead, Body&& body) {
    if (!ahead) return Share([&](int64_t i) { body(i, -1); });
    int64_t mine = 0;
    for (int64_t i = Draw(), next; i < items_; i = next, ++mine) {
      next = Draw();
      body(i, next < items_ ? next : -1);
    }
    Await(mine);
  }

 private:
  __attribute__((always_inline)) int64_t Draw() { return next_.fetch_add(1, std::memory_order_relaxed); }
  // Counts `mine` items as done and waits for the others.
  void Await(int64_t mine);

  const int64_t items_;
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<int64_t> done_{0};
};

class Pool {
 public:
  // The pool of this process, started on first use. After a fork the child starts its own.
  static Pool& Get();

  // Threads for pools started from here on; a running pool is stopped first. At least 1.
  static void SetThreads(int threads);

  int size() const { return size_; }

  // Calls body(0) here and body(thread), thread = 1 .. size() - 1, on every worker that comes in time; returns when all
  // that came have left. The body's work must be in phases. Calls from several threads wait for one another.
  template <typename Body>
  void Run(Body&& body) {
    RunErased([](void* b, int thread) { (*static_cast<std::remove_reference_t<Body>*>(b))(thread); },
              const_cast<void*>(static_cast<const void*>(&body)));
  }

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
