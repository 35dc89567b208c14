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

// Waiting turns before a worker sleeps: a millisecond or less, longer than the host needs between two steps of a decode
// loop and short enough that an idle process takes no CPU.
constexpr int kSpins = 8000;
// Turns between two offers of the core to other threads.
constexpr int kYield = 64;

inline void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb");
#endif
}

// One turn of waiting, the n-th.
inline void Spin(int n) {
  if (n % kYield == kYield - 1) std::this_thread::yield();
  else Pause();
}

std::mutex g_mutex;
Pool* g_pool = nullptr;
pid_t g_owner = 0;
int g_threads = 1;

}  // namespace

struct Pool::State {
  std::mutex run;  // one body at a time

  alignas(64) std::atomic<uint64_t> generation{0};  // counts bodies; a worker waits for it to change
  alignas(64) std::atomic<bool> open{false};        // whether a worker may still join the body
  alignas(64) std::atomic<int> inside{0};           // workers that have joined or are about to find it closed
  void (*body)(void*, int) = nullptr;
  void* argument = nullptr;
  std::atomic<bool> stop{false};

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
    state_->stop.store(true);
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
  // Sequentially consistent, as `asleep` and `inside` are: of two sides that each write and then look, one sees the other.
  s.open.store(true);
  s.generation.fetch_add(1);
  if (s.asleep.load() > 0) {
    std::lock_guard<std::mutex> lock(s.mutex);
    s.wake.notify_all();
  }
  body(argument, 0);
  s.open.store(false);
  for (int n = 0; s.inside.load() != 0; ++n) Spin(n);
}

void Pool::Work(int thread) {
  State& s = *state_;
  uint64_t seen = 0;
  for (;;) {
    for (int n = 0; s.generation.load(std::memory_order_acquire) == seen && n < kSpins; ++n) Spin(n);
    if (s.generation.load(std::memory_order_acquire) == seen) {
      std::unique_lock<std::mutex> lock(s.mutex);
      s.asleep.fetch_add(1);
      s.wake.wait(lock, [&] { return s.generation.load() != seen; });
      s.asleep.fetch_sub(1);
    }
    if (s.stop.load()) return;
    // Once inside with the door open, the body stays: its caller waits until nobody is inside.
    s.inside.fetch_add(1);
    seen = s.generation.load();
    if (s.open.load()) s.body(s.argument, thread);
    s.inside.fetch_sub(1);
  }
}

void Phase::Await(int64_t mine) {
  int64_t done = done_.fetch_add(mine, std::memory_order_acq_rel) + mine;
  for (int n = 0; done != items_; ++n) {
    Spin(n);
    done = done_.load(std::memory_order_acquire);
  }
}

}  // namespace gemworks
