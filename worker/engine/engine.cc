#include "worker/engine/engine.h"

#include <atomic>
#include <chrono>
#include <string>
#include <thread>
#include <utility>
#include <variant>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "common/base/check.h"
#include "common/base/mutex.h"
#include "common/base/status.h"
#include "worker/engine/engine_core.h"
#include "worker/kv/tiers/disk_store.h"

namespace kvist::worker {
namespace {

// How long the loop waits when live requests exist and none can run: only while someone outside
// holds blocks.
constexpr std::chrono::milliseconds kBlockedWait{10};
// How long a stop waits for blocks to reach the disk: some GB, and within a container's grace.
constexpr std::chrono::seconds kFlushTime{10};
// Advice to a client that found the queue full: a few steps.
constexpr int64_t kQueueRetryMs = 200;

}  // namespace

std::string_view FinishReasonName(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
    case FinishReason::kDeadline:
      return "deadline";
    case FinishReason::kError:
      return "error";
  }
  return "unknown";
}

// The inbox that handlers write to and the thread that drives the core. Thread-safe.
// Commands are as bounded as the requests: one submission and at most one cancellation per live id.
class Engine::Loop {
 public:
  Loop(const EngineOptions& options, std::unique_ptr<Backend> backend, const Clock* clock);
  ~Loop() {
    Stop();
    if (options_.disk != nullptr) options_.disk->SetOnDone(nullptr);
  }

  void Start() ABSL_LOCKS_EXCLUDED(mutex_);
  void Stop() ABSL_LOCKS_EXCLUDED(mutex_);
  void BeginDrain() ABSL_LOCKS_EXCLUDED(mutex_);
  bool idle() const ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status Submit(GenerateRequest request, std::shared_ptr<TokenSink> sink)
      ABSL_LOCKS_EXCLUDED(mutex_);
  void Cancel(const RequestId& id, const TokenSink* sink) ABSL_LOCKS_EXCLUDED(mutex_);
  bool RunBetweenSteps(std::function<void(EngineState&)> work) ABSL_LOCKS_EXCLUDED(mutex_);
  bool PostBetweenSteps(std::function<void(EngineState&)> work) ABSL_LOCKS_EXCLUDED(mutex_);
  EngineStats stats() const ABSL_LOCKS_EXCLUDED(mutex_);
  cache_manager::WorkerLoad load() const ABSL_LOCKS_EXCLUDED(mutex_);
  const std::vector<MemoryPart>& memory() const { return core_.memory(); }
  const Backend& backend() const { return core_.backend(); }

 private:
  struct Submission {
    GenerateRequest request;
    std::shared_ptr<TokenSink> sink;
    MonotonicTime queued;
  };
  using Command = std::variant<Submission, RequestId>;  // an id: cancel it
  struct Work {
    std::function<void(EngineState&)> run;
    bool done = false;
  };
  enum class Life { kNew, kRunning, kStopping, kStopped };

  // nullptr: stopped.
  std::shared_ptr<Work> Post(std::function<void(EngineState&)> work)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Run();
  void RunInbox();
  // Waits for something to do and takes it. False: stop.
  bool TakeInbox(bool ran) ABSL_LOCKS_EXCLUDED(mutex_);
  void Apply(Command& command);
  void RunWork() ABSL_LOCKS_EXCLUDED(mutex_);
  void Publish() ABSL_LOCKS_EXCLUDED(mutex_);
  void End() ABSL_LOCKS_EXCLUDED(mutex_);
  EngineState CoreState() ABSL_LOCKS_EXCLUDED(mutex_);

  const EngineOptions options_;
  const Clock* clock_;
  EngineCore core_;  // the loop's thread's, but for constants
  std::thread thread_;
  std::atomic<std::thread::id> loop_thread_{};
  bool between_steps_ = true;      // the loop's thread's
  std::vector<Command> commands_;  // the loop's thread's: taken from the inbox
  std::vector<std::shared_ptr<Work>> works_;

  mutable Mutex mutex_;
  CondVar wake_;       // the loop: something is in the inbox
  CondVar work_done_;  // callers of RunBetweenSteps and Stop
  Life life_ ABSL_GUARDED_BY(mutex_) = Life::kNew;
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  bool disk_done_ ABSL_GUARDED_BY(mutex_) = false;  // something to take from the disk tier
  std::vector<Command> inbox_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::shared_ptr<Work>> work_inbox_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<RequestId, const TokenSink*> live_ids_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_set<RequestId> cancelled_ids_ ABSL_GUARDED_BY(mutex_);
  size_t queued_ ABSL_GUARDED_BY(mutex_) = 0;  // submitted and never scheduled
  EngineStats stats_ ABSL_GUARDED_BY(mutex_);
  cache_manager::WorkerLoad load_ ABSL_GUARDED_BY(mutex_);
};

Engine::Loop::Loop(const EngineOptions& options, std::unique_ptr<Backend> backend,
                   const Clock* clock)
    : options_(options), clock_(clock), core_(options, std::move(backend), clock) {
  core_.SetOnEnd([this](const RequestId& id) {
    MutexLock lock(mutex_);
    live_ids_.erase(id);
    cancelled_ids_.erase(id);
  });
  load_ = core_.load();
  if (options_.disk == nullptr) return;
  options_.disk->SetOnDone([this] {
    MutexLock lock(mutex_);
    disk_done_ = true;
    wake_.NotifyAll();
  });
}

void Engine::Loop::Start() {
  MutexLock lock(mutex_);
  if (life_ != Life::kNew) return;
  life_ = Life::kRunning;
  thread_ = std::thread([this] { Run(); });
}

void Engine::Loop::Stop() {
  bool never_started = false;
  {
    MutexLock lock(mutex_);
    if (life_ == Life::kStopped) return;
    if (life_ == Life::kStopping) {
      while (life_ != Life::kStopped) work_done_.Wait(mutex_);
      return;
    }
    never_started = life_ == Life::kNew;
    life_ = Life::kStopping;
    draining_ = true;
    wake_.NotifyAll();
  }
  if (never_started) {
    TakeInbox(false);
    End();
  } else {
    thread_.join();
  }
  MutexLock lock(mutex_);
  life_ = Life::kStopped;
  work_done_.NotifyAll();
}

void Engine::Loop::BeginDrain() {
  MutexLock lock(mutex_);
  draining_ = true;
  load_.draining = true;
  wake_.NotifyAll();
}

bool Engine::Loop::idle() const {
  MutexLock lock(mutex_);
  return live_ids_.empty();
}

absl::Status Engine::Loop::Submit(GenerateRequest request, std::shared_ptr<TokenSink> sink) {
  KVIST_RETURN_IF_ERROR(PrepareRequest(core_.limits(), &request));
  MutexLock lock(mutex_);
  if (draining_) return Unavailable(ErrorReason::kDraining, "the worker takes no new requests");
  if (live_ids_.contains(request.id)) {
    return WithDetails(absl::AbortedError("a live request has this id"), {.field = "request_id"});
  }
  if (queued_ >= options_.max_queue) return Overloaded("the worker's queue is full", kQueueRetryMs);
  live_ids_.emplace(request.id, sink.get());
  ++queued_;
  inbox_.push_back(Submission{std::move(request), std::move(sink), clock_->Now()});
  wake_.NotifyAll();
  return absl::OkStatus();
}

// The command carries the id alone: whoever takes the id over is submitted after it.
void Engine::Loop::Cancel(const RequestId& id, const TokenSink* sink) {
  MutexLock lock(mutex_);
  const auto live = live_ids_.find(id);
  if (live == live_ids_.end() || live->second != sink) return;
  if (!cancelled_ids_.insert(id).second) return;
  inbox_.push_back(id);
  wake_.NotifyAll();
}

bool Engine::Loop::RunBetweenSteps(std::function<void(EngineState&)> work) {
  const bool on_loop = std::this_thread::get_id() == loop_thread_.load();
  if (on_loop && between_steps_) {
    EngineState state = CoreState();
    work(state);
    return true;
  }
  MutexLock lock(mutex_);
  const std::shared_ptr<Work> entry = Post(std::move(work));
  if (entry == nullptr) return false;
  while (!on_loop && !entry->done) work_done_.Wait(mutex_);
  return true;
}

bool Engine::Loop::PostBetweenSteps(std::function<void(EngineState&)> work) {
  MutexLock lock(mutex_);
  return Post(std::move(work)) != nullptr;
}

std::shared_ptr<Engine::Loop::Work> Engine::Loop::Post(std::function<void(EngineState&)> work) {
  if (life_ != Life::kRunning) return nullptr;
  auto entry = std::make_shared<Work>(Work{std::move(work)});
  work_inbox_.push_back(entry);
  wake_.NotifyAll();
  return entry;
}

EngineStats Engine::Loop::stats() const {
  MutexLock lock(mutex_);
  return stats_;
}

cache_manager::WorkerLoad Engine::Loop::load() const {
  MutexLock lock(mutex_);
  return load_;
}

// What was asked since the last step: commands first, then the work between two steps.
void Engine::Loop::RunInbox() {
  between_steps_ = false;
  for (Command& command : commands_) Apply(command);
  commands_.clear();
  between_steps_ = true;
  RunWork();
}

void Engine::Loop::Run() {
  loop_thread_ = std::this_thread::get_id();
  bool ran = false;
  while (TakeInbox(ran)) {
    RunInbox();
    between_steps_ = false;
    ran = core_.Step();
    between_steps_ = true;
    Publish();
    if (options_.on_step) options_.on_step();
  }
  End();
}

bool Engine::Loop::TakeInbox(bool ran) {
  MutexLock lock(mutex_);
  while (!ran && !disk_done_ && inbox_.empty() && work_inbox_.empty() && life_ == Life::kRunning) {
    if (core_.idle()) {
      wake_.Wait(mutex_);
    } else if (!wake_.WaitUntil(mutex_, std::chrono::steady_clock::now() + kBlockedWait)) {
      break;
    }
  }
  disk_done_ = false;
  commands_.swap(inbox_);
  works_.swap(work_inbox_);
  return life_ == Life::kRunning;
}

void Engine::Loop::Apply(Command& command) {
  if (Submission* submission = std::get_if<Submission>(&command)) {
    core_.Add(std::move(submission->request), std::move(submission->sink), submission->queued);
  } else {
    core_.Cancel(std::get<RequestId>(command));
  }
}

void Engine::Loop::RunWork() {
  if (works_.empty()) return;
  EngineState state = CoreState();
  for (const std::shared_ptr<Work>& work : works_) work->run(state);
  MutexLock lock(mutex_);
  for (const std::shared_ptr<Work>& work : works_) work->done = true;
  works_.clear();
  work_done_.NotifyAll();
}

EngineState Engine::Loop::CoreState() {
  EngineState state = core_.state();
  MutexLock lock(mutex_);
  state.load.draining = draining_;
  return state;
}

void Engine::Loop::Publish() {
  const cache_manager::WorkerLoad load = core_.load();
  MutexLock lock(mutex_);
  stats_ = core_.stats();
  load_ = load;
  load_.draining = draining_;
  queued_ = core_.unscheduled();
  for (const Command& command : inbox_) queued_ += std::holds_alternative<Submission>(command);
}

// What was asked before the stop happens, then everything ends.
void Engine::Loop::End() {
  RunInbox();
  between_steps_ = false;
  core_.EndAll(Unavailable(ErrorReason::kDraining, "the worker is stopping"));
  core_.FlushOffload(kFlushTime);
  between_steps_ = true;
  Publish();
  if (options_.on_step) options_.on_step();
}

Engine::Engine(const EngineOptions& options, std::unique_ptr<Backend> backend, const Clock* clock)
    : loop_(std::make_unique<Loop>(options, std::move(backend), clock)) {}
Engine::~Engine() = default;

void Engine::Start() { loop_->Start(); }
void Engine::Stop() { loop_->Stop(); }
void Engine::BeginDrain() { loop_->BeginDrain(); }
bool Engine::idle() const { return loop_->idle(); }
absl::Status Engine::Submit(GenerateRequest request, std::shared_ptr<TokenSink> sink) {
  return loop_->Submit(std::move(request), std::move(sink));
}
void Engine::Cancel(const RequestId& id, const TokenSink* sink) { loop_->Cancel(id, sink); }
bool Engine::RunBetweenSteps(std::function<void(EngineState&)> work) {
  return loop_->RunBetweenSteps(std::move(work));
}
bool Engine::PostBetweenSteps(std::function<void(EngineState&)> work) {
  return loop_->PostBetweenSteps(std::move(work));
}
EngineStats Engine::stats() const { return loop_->stats(); }
cache_manager::WorkerLoad Engine::load() const { return loop_->load(); }
const std::vector<MemoryPart>& Engine::memory() const { return loop_->memory(); }
const Backend& Engine::backend() const { return loop_->backend(); }

}  // namespace kvist::worker
