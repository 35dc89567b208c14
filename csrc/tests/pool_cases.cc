// The thread pool: bodies, phases, sleep, several callers, a fork.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

#include "cases.h"
#include "check.h"
#include "pool.h"

#if defined(__SANITIZE_THREAD__)
#define GEMWORKS_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define GEMWORKS_TSAN 1
#endif
#endif

namespace gemworks::test {
namespace {

// The caller runs every body, no worker runs one twice, and what bodies write is seen by the next and by the caller. No
// atomics here: ThreadSanitizer is to see that the pool orders these accesses.
void TestBodies(int threads) {
  Pool& pool = Pool::Get();
  Case("pool of %d: bodies", threads);
  if (pool.size() != threads) Fail("size is %d", pool.size());
  std::vector<int64_t> runs(static_cast<size_t>(threads) * 16);
  for (int body = 0; body < 300; ++body) {
    pool.Run([&](int thread) { ++runs[static_cast<size_t>(thread) * 16]; });
    if (runs[0] != body + 1) Fail("the caller ran %d of %d bodies", static_cast<int>(runs[0]), body + 1);
    for (int thread = 1; thread < threads; ++thread) {
      if (runs[static_cast<size_t>(thread) * 16] > body + 1) Fail("thread %d ran a body twice", thread);
    }
  }
}

// Every item of every phase is done once, and seen by whoever comes to the next phase.
void TestPhases(int threads) {
  Pool& pool = Pool::Get();
  Case("pool of %d: phases", threads);
  constexpr int64_t kItems = 500;
  constexpr int kPhases = 20;
  std::atomic<int> wrong{0};
  for (int body = 0; body < 5; ++body) {
    std::vector<int> done(kItems);
    std::vector<std::unique_ptr<Phase>> phases;
    for (int phase = 0; phase < 2 * kPhases; ++phase) phases.push_back(std::make_unique<Phase>(phase % 2 ? threads : kItems));
    pool.Run([&](int) {
      for (int phase = 0; phase < kPhases; ++phase) {
        phases[static_cast<size_t>(2 * phase)]->Share([&](int64_t i) { ++done[static_cast<size_t>(i)]; });
        phases[static_cast<size_t>(2 * phase + 1)]->Share([&](int64_t) {
          for (int d : done) wrong += d != phase + 1;
        });
      }
    });
    for (int d : done) wrong += d != kPhases;
  }
  if (wrong != 0) Fail("%d items were not done once, or not seen", wrong.load());
}

// A phase without items is over at once.
void TestNoItems(int threads) {
  Case("pool of %d: no items", threads);
  Phase none(0);
  int calls = 0;
  Pool::Get().Run([&](int) { none.Share([&](int64_t) { ++calls; }); });
  if (calls != 0) Fail("%d calls", calls);
}

// Bodies after pauses shorter and longer than the workers spin: the work of none is lost while they fall asleep, and
// workers do come again.
void TestSleep(int threads) {
  Pool& pool = Pool::Get();
  Case("pool of %d: sleep", threads);
  int total = 0;
  std::atomic<int> came{0};
  Random random(1);
  for (int body = 0; body < 60; ++body) {
    std::this_thread::sleep_for(std::chrono::microseconds(random.Below(body % 10 == 0 ? 5000 : 400)));
    std::atomic<int> ran{0};
    Phase items(threads);
    pool.Run([&](int thread) {
      items.Share([&](int64_t) {
        ++ran;
        // Long enough for a sleeper to wake up and take one.
        std::this_thread::sleep_for(std::chrono::microseconds(200));
      });
      came += thread != 0;
    });
    total += ran;
  }
  if (total != 60 * threads) Fail("%d of %d items were done", total, 60 * threads);
  if (threads > 1 && came == 0) Fail("no worker came in 60 bodies");
}

// Bodies of several callers never run at once.
void TestCallers(int threads) {
  Pool& pool = Pool::Get();
  Case("pool of %d: several callers", threads);
  int64_t unguarded = 0;
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 3; ++caller) {
    callers.emplace_back([&] {
      for (int body = 0; body < 50; ++body) {
        Phase first(1), second(1);
        pool.Run([&](int) {
          first.Share([&](int64_t) { ++unguarded; });
          second.Share([&](int64_t) { ++unguarded; });
        });
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  if (unguarded != 300) Fail("%d of 300 increments", static_cast<int>(unguarded));
}

// A child starts a pool of its own, although the parent's workers did not come along; and so does its child.
void TestFork(int threads, int depth) {
#if !defined(GEMWORKS_TSAN)  // which does not let a forked child start threads
  Pool::Get().Run([](int) {});
  const int failures = Failures();
  const pid_t child = fork();
  if (child == 0) {
    std::atomic<int> ran{0};
    Phase items(threads);
    Pool::Get().Run([&](int) { items.Share([&](int64_t) { ++ran; }); });
    if (ran != threads || Pool::Get().size() != threads) _exit(1);
    if (depth > 0) TestFork(threads, depth - 1);
    _exit(Failures() != failures);
  }
  int status = -1;
  waitpid(child, &status, 0);
  if (status != 0) Fail("the child at depth %d ended with status %d", depth, status);
#else
  (void)threads, (void)depth;
#endif
}

}  // namespace

void TestPool() {
  Case("pool of 0 threads is one of 1");
  Pool::SetThreads(0);
  if (Pool::Get().size() != 1) Fail("size is %d", Pool::Get().size());
  for (int threads : {1, 2, 3, 4, 8}) {
    Pool::SetThreads(threads);
    TestBodies(threads);
    TestPhases(threads);
    TestNoItems(threads);
    TestSleep(threads);
    TestCallers(threads);
    Case("pool of %d: fork", threads);
    TestFork(threads, 1);
  }
  Case("pools come and go");
  for (int i = 0; i < 50; ++i) {
    Pool::SetThreads(1 + i % 4);
    if (i % 3 != 0) Pool::Get().Run([](int) {});
    if (i % 7 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

}  // namespace gemworks::test
