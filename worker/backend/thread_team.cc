// Invariants: body_ changes only while every other member waits for runs_ to change; arrived_ is 0
// whenever phase_ changes; a member sleeps only on a value that it has read and that some other
// member will change.
#include "worker/backend/thread_team.h"

#include <system_error>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"

namespace kvist::worker {
namespace {

constexpr int kSpins =
    2048;  // some 50 microseconds: longer than any wait between two balanced shares
constexpr int kYields = 16;

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::atomic_signal_fence(std::memory_order_seq_cst);
#endif
}

// Returns once `word` differs from `old`, having acquired what its writer released.
void WaitWhile(const std::atomic<uint32_t>& word, uint32_t old) {
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
  body_ = nullptr;
  runs_.fetch_add(1, std::memory_order_release);
  runs_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadTeam::Work(int member, void (*prepare)()) {
  prepare();
  for (uint32_t seen = 0;; ++seen) {
    WaitWhile(runs_, seen);
    if (body_ == nullptr) return;
    (*body_)(member);
    Barrier();
  }
}

void ThreadTeam::Run(absl::FunctionRef<void(int)> body) {
  if (size_ == 1) return body(0);
  body_ = &body;
  runs_.fetch_add(1, std::memory_order_release);
  runs_.notify_all();
  body(0);
  Barrier();
}

void ThreadTeam::Barrier() {
  if (size_ == 1) return;
  // Read before arriving: once the last member has arrived the phase may change at any moment.
  const uint32_t phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.fetch_add(1, std::memory_order_release);
    phase_.notify_all();
  } else {
    WaitWhile(phase_, phase);
  }
}

void ThreadTeam::ParallelFor(int64_t count, absl::FunctionRef<void(int64_t)> body) {
  std::atomic<int64_t> next{0};
  Run([&](int) {
    for (int64_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) body(i);
  });
}

}  // namespace kvist::worker
