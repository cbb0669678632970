// Invariants: a stage's items are taken by decrementing ticket_, never twice; the next stage opens
// when unfinished_ has reached 0, so nobody is inside an item of an earlier one, and body_, stages_
// and first_epoch_ change only while no item is taken. Epochs only rise, so a ticket that a member
// read before it lost its core is recognised as old. A member sleeps only on a value of openings_
// that it read before a ticket without items: whoever opens the next stage changes it after that.
#include "worker/backend/thread_team.h"

#include <system_error>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status.h"

namespace kvist::worker {
namespace {

constexpr int kSpins =
    2048;  // some 50 microseconds: longer than any wait between two balanced shares
constexpr int kYields = 16;

uint32_t EpochOf(uint64_t ticket) { return static_cast<uint32_t>(ticket >> 32); }
uint32_t ItemsLeft(uint64_t ticket) { return static_cast<uint32_t>(ticket); }
uint64_t TicketOf(uint32_t epoch, uint32_t items) { return uint64_t{epoch} << 32 | items; }

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::atomic_signal_fence(std::memory_order_seq_cst);
#endif
}

// Returns once `word` differs from `old`, having acquired what its writer released.
template <typename T>
void WaitWhile(const std::atomic<T>& word, T old) {
  for (int i = 0; i < kSpins; ++i) {
    if (word.load(std::memory_order_acquire) != old) return;
    Pause();
  }
  for (int i = 0; i < kYields; ++i) {
    if (word.load(std::memory_order_acquire) != old) return;
    std::this_thread::yield();
  }
  word.wait(old, std::memory_order_acquire);
}

}  // namespace

absl::StatusOr<std::unique_ptr<ThreadTeam>> ThreadTeam::Create(int threads, void (*prepare)()) {
  if (threads < 1 || threads > kMaxTeamThreads) {
    return InvalidField("threads",
                        absl::StrCat("must be 1 to ", kMaxTeamThreads, ", is ", threads));
  }
  std::unique_ptr<ThreadTeam> team(new ThreadTeam(threads));
  try {
    for (int member = 1; member < threads; ++member) {
      team->threads_.emplace_back([t = team.get(), member, prepare] { t->Work(member, prepare); });
    }
  } catch (const std::system_error& error) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot start ", threads, " threads: ", error.what()));
  }
  return team;
}

ThreadTeam::~ThreadTeam() {
  stopping_.store(true, std::memory_order_relaxed);
  OpenStage(EpochOf(ticket_.load(std::memory_order_relaxed)) + 1);
  for (std::thread& thread : threads_) thread.join();
}

void ThreadTeam::Work(int member, void (*prepare)()) {
  prepare();
  for (;;) {
    const uint32_t openings = openings_.load(std::memory_order_acquire);
    if (TryItem(member, ticket_.load(std::memory_order_acquire))) continue;
    if (stopping_.load(std::memory_order_relaxed)) return;
    WaitWhile(openings_, openings);
  }
}

// Takes and runs an item, unless none was left at `ticket`.
bool ThreadTeam::TryItem(int member, uint64_t ticket) {
  if (ItemsLeft(ticket) == 0) return false;
  if (!ticket_.compare_exchange_strong(ticket, ticket - 1, std::memory_order_acquire)) return true;
  const uint32_t epoch = EpochOf(ticket);
  const uint32_t stage = epoch - first_epoch_;
  (*body_)(member, stage, stages_[stage] - static_cast<int64_t>(ItemsLeft(ticket)));
  if (unfinished_.fetch_sub(1, std::memory_order_acq_rel) == 1) OpenStage(epoch + 1);
  return true;
}

// Opens the first stage from `epoch` on that has items, or ends the run.
void ThreadTeam::OpenStage(uint32_t epoch) {
  size_t stage = epoch - first_epoch_;
  while (stage < stages_.size() && stages_[stage] == 0) ++stage, ++epoch;
  const uint32_t items = stage < stages_.size() ? static_cast<uint32_t>(stages_[stage]) : 0;
  unfinished_.store(items, std::memory_order_relaxed);
  ticket_.store(TicketOf(epoch, items), std::memory_order_release);
  openings_.fetch_add(1, std::memory_order_release);
  openings_.notify_all();
}

void ThreadTeam::RunStages(std::span<const int32_t> stages, StageBody body) {
  first_epoch_ = EpochOf(ticket_.load(std::memory_order_relaxed)) + 1;
  const uint32_t end = first_epoch_ + static_cast<uint32_t>(stages.size());
  body_ = &body;
  stages_ = stages;
  OpenStage(first_epoch_);
  for (;;) {
    const uint32_t openings = openings_.load(std::memory_order_acquire);
    const uint64_t ticket = ticket_.load(std::memory_order_acquire);
    if (EpochOf(ticket) == end) return;
    if (!TryItem(0, ticket)) WaitWhile(openings_, openings);
  }
}

void ThreadTeam::ParallelFor(int64_t count, absl::FunctionRef<void(int64_t)> body) {
  KVIST_CHECK(0 <= count && count <= INT32_MAX);
  const int32_t items = static_cast<int32_t>(count);
  RunStages({&items, 1}, [&](int, int64_t, int64_t item) { body(item); });
}

void ThreadTeam::Run(absl::FunctionRef<void(int)> body) {
  // Nobody leaves an item before all are taken, so nobody takes two.
  std::atomic<int> arrived{0};
  const int32_t items = size_;
  RunStages({&items, 1}, [&](int member, int64_t, int64_t) {
    arrived.fetch_add(1, std::memory_order_acq_rel);
    arrived.notify_all();
    for (int seen = arrived.load(); seen != size_; seen = arrived.load()) WaitWhile(arrived, seen);
    body(member);
  });
}

}  // namespace kvist::worker
