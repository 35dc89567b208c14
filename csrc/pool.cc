#include "pool.h"

#include <pthread.h>
#include <unistd.h>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace gemworks {
namespace {

// Waiting turns before a worker sleeps: about 0.2 ms, longer than the host needs between two steps of a decode loop
// and short enough that an idle process takes no CPU.
constexpr int kSpins = 8000;
// Turns at a barrier before the thread gives its core away: with more threads than cores nobody else would arrive.
constexpr int kBarrierSpins = 20000;

inline void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb");
#endif
}

std::mutex g_mutex;
Pool* g_pool = nullptr;
pid_t g_owner = 0;
int g_threads = 1;

}  // namespace

struct Pool::State {
  std::mutex run;  // one body at a time

  alignas(64) std::atomic<uint64_t> generation{0};  // counts bodies; a worker waits for it to change
  alignas(64) std::atomic<int> unfinished{0};
  alignas(64) std::atomic<int> arrived{0};
  alignas(64) std::atomic<uint64_t> phase{0};
  void (*body)(void*, int) = nullptr;
  void* argument = nullptr;
  bool stop = false;

  std::mutex mutex;
  std::condition_variable wake;
  std::atomic<int> asleep{0};
  std::vector<std::thread> workers;
};

Pool& Pool::Get() {
  std::lock_guard<std::mutex> lock(g_mutex);
  if (g_pool != nullptr && g_owner != getpid()) g_pool = nullptr;  // a fork took no threads along; the old one is lost
  if (g_pool == nullptr) {
    g_pool = new Pool(g_threads);
    g_owner = getpid();
  }
  return *g_pool;
}

void Pool::SetThreads(int threads) {
  std::lock_guard<std::mutex> lock(g_mutex);
  g_threads = threads < 1 ? 1 : threads;
  if (g_pool != nullptr && g_owner == getpid()) delete g_pool;
  g_pool = nullptr;
}

Pool::Pool(int size) : size_(size), state_(new State) {
  for (int thread = 1; thread < size; ++thread) state_->workers.emplace_back([this, thread] { Work(thread); });
}

Pool::~Pool() {
  {
    std::lock_guard<std::mutex> lock(state_->mutex);
    state_->stop = true;
    state_->generation.fetch_add(1);
  }
  state_->wake.notify_all();
  for (std::thread& worker : state_->workers) worker.join();
  delete state_;
}

void Pool::RunErased(void (*body)(void*, int), void* argument) {
  State& s = *state_;
  std::lock_guard<std::mutex> only(s.run);
  if (size_ == 1) return body(argument, 0);
  s.body = body;
  s.argument = argument;
  s.unfinished.store(size_ - 1, std::memory_order_relaxed);
  s.generation.fetch_add(1);  // sequentially consistent, as `asleep` is: one of the two sides sees the other
  if (s.asleep.load() > 0) {
    std::lock_guard<std::mutex> lock(s.mutex);
    s.wake.notify_all();
  }
  body(argument, 0);
  for (int spins = 0; s.unfinished.load(std::memory_order_acquire) != 0; ++spins) {
    if (spins < kBarrierSpins) Pause();
    else std::this_thread::yield();
  }
}

void Pool::Work(int thread) {
  State& s = *state_;
  uint64_t seen = 0;
  for (;;) {
    for (int spins = 0; s.generation.load(std::memory_order_acquire) == seen && spins < kSpins; ++spins) Pause();
    if (s.generation.load(std::memory_order_acquire) == seen) {
      std::unique_lock<std::mutex> lock(s.mutex);
      s.asleep.fetch_add(1);
      s.wake.wait(lock, [&] { return s.generation.load() != seen; });
      s.asleep.fetch_sub(1);
    }
    // Bodies are one at a time and wait for every worker, so a worker never misses one.
    ++seen;
    if (s.stop) return;
    s.body(s.argument, thread);
    s.unfinished.fetch_sub(1, std::memory_order_release);
  }
}

void Pool::Barrier() {
  if (size_ == 1) return;
  State& s = *state_;
  const uint64_t phase = s.phase.load(std::memory_order_relaxed);
  if (s.arrived.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
    s.arrived.store(0, std::memory_order_relaxed);
    s.phase.store(phase + 1, std::memory_order_release);
    return;
  }
  for (int spins = 0; s.phase.load(std::memory_order_acquire) == phase; ++spins) {
    if (spins < kBarrierSpins) Pause();
    else std::this_thread::yield();
  }
}

}  // namespace gemworks
