// Threads that run one function together, many times a second.
#ifndef KVIST_WORKER_BACKEND_THREAD_TEAM_H_
#define KVIST_WORKER_BACKEND_THREAD_TEAM_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"

namespace kvist::worker {

inline constexpr int kMaxTeamThreads = 256;

// A fixed team of threads; the caller of Run is member 0. Waiting spins briefly, because the next
// barrier is usually microseconds away, then yields, then sleeps on a futex, because the cores may
// be shared. Neither Run nor Barrier allocates. Owns its threads. Single-threaded: one caller of
// Run at a time.
class ThreadTeam {
 public:
  // Starts threads 1 .. threads-1; each calls `prepare` first. INVALID_ARGUMENT unless 1 <= threads
  // <= kMaxTeamThreads; RESOURCE_EXHAUSTED if the system refuses a thread.
  static absl::StatusOr<std::unique_ptr<ThreadTeam>> Create(int threads, void (*prepare)());
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;
  ~ThreadTeam();

  int size() const { return size_; }

  // Calls body(0 .. size-1), each on its own thread, and returns when all have returned. What the
  // caller wrote before is visible to all of them, what they wrote is visible after.
  void Run(absl::FunctionRef<void(int)> body);
  // Inside a body: returns once every member has called it; orders memory between them. REQUIRES:
  // every member calls it equally often.
  void Barrier();

  // Inside nothing else: calls body(i) for i in [0, count), each on some member, in no order.
  void ParallelFor(int64_t count, absl::FunctionRef<void(int64_t)> body);

 private:
  explicit ThreadTeam(int threads) : size_(threads) {}
  void Work(int member, void (*prepare)());

  const int size_;
  std::vector<std::thread> threads_;
  const absl::FunctionRef<void(int)>* body_ = nullptr;  // nullptr when woken to stop
  // Each on a cache line of its own: they are written and polled by different members.
  alignas(64) std::atomic<uint32_t> runs_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
};

}  // namespace kvist::worker

#endif  // KVIST_WORKER_BACKEND_THREAD_TEAM_H_
