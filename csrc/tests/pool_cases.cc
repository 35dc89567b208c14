// The thread pool: bodies, barriers, tickets, sleep, several callers, a fork.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
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

// Every thread runs every body once, and what bodies write is seen by the next and by the caller. No atomics here:
// ThreadSanitizer is to see that the pool orders these accesses.
void TestBodies(int threads) {
  Pool& pool = Pool::Get();
  Case("pool of %d: bodies", threads);
  if (pool.size() != threads) Fail("size is %d", pool.size());
  std::vector<int64_t> runs(static_cast<size_t>(threads) * 16);
  for (int body = 0; body < 300; ++body) {
    const int64_t before = runs[0];
    pool.Run([&](int thread) {
      if (thread == 0 ? runs[0] != before : runs[static_cast<size_t>(thread) * 16] != before) std::abort();
      ++runs[static_cast<size_t>(thread) * 16];
    });
  }
  for (int thread = 0; thread < threads; ++thread) {
    if (runs[static_cast<size_t>(thread) * 16] != 300) Fail("thread %d ran %d of 300 bodies", thread, static_cast<int>(runs[static_cast<size_t>(thread) * 16]));
  }
}

// Between two barriers each thread reads what its neighbor wrote before the first.
void TestBarriers(int threads) {
  Pool& pool = Pool::Get();
  Case("pool of %d: barriers", threads);
  std::vector<int> written(static_cast<size_t>(threads));
  std::atomic<int> wrong{0};
  for (int body = 0; body < 5; ++body) {
    pool.Run([&](int thread) {
      for (int round = 0; round < 40; ++round) {
        written[static_cast<size_t>(thread)] = round + 1;
        pool.Barrier();
        if (written[static_cast<size_t>((thread + 1) % threads)] != round + 1) ++wrong;
        pool.Barrier();
      }
    });
  }
  if (wrong != 0) Fail("%d times a thread did not see what was written before the barrier", wrong.load());
}

// Each ticket is drawn once, and the items behind the tickets are seen after a barrier.
void TestTickets(int threads) {
  Pool& pool = Pool::Get();
  Case("pool of %d: tickets", threads);
  constexpr int64_t kItems = 5000;
  std::vector<uint8_t> drawn(kItems);
  std::vector<int64_t> seen(static_cast<size_t>(threads));
  Tickets tickets;
  pool.Run([&](int thread) {
    for (int64_t i = tickets.Draw(); i < kItems; i = tickets.Draw()) ++drawn[static_cast<size_t>(i)];
    pool.Barrier();
    for (uint8_t d : drawn) seen[static_cast<size_t>(thread)] += d == 1;
  });
  for (int64_t s : seen) {
    if (s != kItems) Fail("a thread saw %d of %d items drawn once", static_cast<int>(s), static_cast<int>(kItems));
  }
}

// Bodies after pauses shorter and longer than the workers spin: none is lost while they fall asleep.
void TestSleep(int threads) {
  Pool& pool = Pool::Get();
  Case("pool of %d: sleep", threads);
  int total = 0;
  Random random(1);
  for (int body = 0; body < 60; ++body) {
    std::this_thread::sleep_for(std::chrono::microseconds(random.Below(body % 10 == 0 ? 5000 : 400)));
    std::atomic<int> ran{0};
    pool.Run([&](int) { ++ran; });
    total += ran;
  }
  if (total != 60 * threads) Fail("%d of %d bodies ran", total, 60 * threads);
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
        pool.Run([&](int thread) {
          if (thread == 0) ++unguarded;
          pool.Barrier();
          if (thread == pool.size() - 1) ++unguarded;
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
    Pool::Get().Run([&](int) { ++ran; });
    if (ran != threads) _exit(1);
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
    TestBarriers(threads);
    TestTickets(threads);
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
