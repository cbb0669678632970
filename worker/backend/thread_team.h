// Threads that run one program together, many times a second.
#ifndef KVIST_WORKER_BACKEND_THREAD_TEAM_H_
#define KVIST_WORKER_BACKEND_THREAD_TEAM_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"

namespace kvist::worker {

inline constexpr int kMaxTeamThreads = 256;

// A fixed team of threads; the caller is member 0. Work comes in stages of items: whoever is free
// takes the next item, and whoever finishes a stage's last item opens the next stage. So a member
// that is not on a core, because others use it, holds up nobody unless it is inside an item; and it
// need not catch up. Waiting spins briefly, because the next stage is usually microseconds away,
// then yields, then sleeps on a futex, because the cores may be shared. Nothing but Create
// allocates. Owns its threads. Single-threaded: one caller at a time.
class ThreadTeam {
 public:
  using StageBody = absl::FunctionRef<void(int member, int64_t stage, int64_t item)>;

  // Starts threads 1 .. threads-1; each calls `prepare` first. INVALID_ARGUMENT unless 1 <= threads
  // <= kMaxTeamThreads; RESOURCE_EXHAUSTED if the system refuses a thread.
  static absl::StatusOr<std::unique_ptr<ThreadTeam>> Create(int threads, void (*prepare)());
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;
  ~ThreadTeam();

  int size() const { return size_; }

  // Calls body(member, stage, item) for all items 0 .. stages[stage]-1 of all stages, an item of a
  // stage only after all items of the stages before. Items of a stage are taken in ascending order,
  // each by any member. What an item writes is visible to later stages, and after the return.
  void RunStages(std::span<const int32_t> stages, StageBody body);
  // One stage: body(i) for i in [0, count), each on some member.
  void ParallelFor(int64_t count, absl::FunctionRef<void(int64_t)> body);
  // Calls body(0 .. size-1), each on its own thread and all at the same time.
  void Run(absl::FunctionRef<void(int)> body);

 private:
  explicit ThreadTeam(int threads) : size_(threads) {}
  void Work(int member, void (*prepare)());
  bool TryItem(int member, uint64_t ticket);
  void OpenStage(uint32_t epoch);

  const int size_;
  std::vector<std::thread> threads_;
  // Of the run; read only by who has taken one of its items.
  const StageBody* body_ = nullptr;
  std::span<const int32_t> stages_;
  uint32_t first_epoch_ = 0;
  std::atomic<bool> stopping_{false};
  // Each on a cache line of its own: they are written and polled by different members.
  // Upper half: the open stage's epoch, which counts stages of all runs; lower half: its items that
  // nobody has taken.
  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<int64_t> unfinished_{0};  // items of the open stage
  alignas(64) std::atomic<uint32_t> openings_{0};   // counts OpenStage, to wait on
};

}  // namespace kvist::worker

#endif  // KVIST_WORKER_BACKEND_THREAD_TEAM_H_
