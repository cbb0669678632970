#include "services/worker/manager_link.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cache_manager/limits.h"
#include "common/base/logging.h"
#include "services/runtime/role_server.h"
#include "services/worker/limits.h"

namespace kvist::services {
namespace {

namespace cm = ::kvist::cache_manager;

}  // namespace

ManagerLink::ManagerLink(Options options)
    : options_(std::move(options)),
      stub_(v1::CacheManager::NewStub(ConnectTo(options_.manager_address))),
      thread_([this] { Run(); }) {}

ManagerLink::~ManagerLink() {
  {
    MutexLock lock(mutex_);
    stopped_ = true;
    if (context_ != nullptr) context_->TryCancel();
  }
  changed_.NotifyAll();
  thread_.join();
  // The state machine points into the engine's state: gone before the engine is.
  options_.engine->RunBetweenSteps([this](worker::EngineState&) { side_.reset(); });
}

void ManagerLink::Wake() {
  {
    MutexLock lock(mutex_);
    woken_ = true;
  }
  changed_.NotifyAll();
}

int64_t ManagerLink::NowMs() const {
  return std::chrono::duration_cast<std::chrono::milliseconds>(
             options_.clock->Now().time_since_epoch())
      .count();
}

bool ManagerLink::WaitForWork(std::chrono::milliseconds time, bool* broken) {
  const auto until = std::chrono::steady_clock::now() + time;
  MutexLock lock(mutex_);
  while (!woken_ && !stopped_ && (broken == nullptr || !broken_)) {
    if (!changed_.WaitUntil(mutex_, until)) break;
  }
  woken_ = false;
  if (broken != nullptr) *broken = broken_;
  return !stopped_;
}

void ManagerLink::Run() {
  auto backoff = kMinReconnectBackoff;
  while (true) {
    backoff = RunOnce() ? kMinReconnectBackoff : std::min(2 * backoff, kMaxReconnectBackoff);
    const auto until = std::chrono::steady_clock::now() + backoff;
    MutexLock lock(mutex_);
    while (!stopped_) {
      if (!changed_.WaitUntil(mutex_, until)) break;
    }
    if (stopped_) return;
  }
}

bool ManagerLink::RunOnce() {
  std::optional<cm::Hello> hello;
  const bool engine_runs = options_.engine->RunBetweenSteps([&](worker::EngineState& state) {
    if (side_ == nullptr) {
      side_ = std::make_unique<cm::WorkerSide>(
          options_.info,
          cm::WorkerSide::Sources{state.pools, &state.sessions, &state.events, state.tiers});
    }
    hello = side_->Connect(NowMs());
  });
  if (!engine_runs) return false;
  grpc::ClientContext context;
  {
    MutexLock lock(mutex_);
    if (stopped_) return false;
    context_ = &context;
    broken_ = welcomed_ = false;
    polled_.reset();
  }
  const auto stream = stub_->WorkerStream(&context);
  if (stream->Write(ToProto(*hello, options_.description))) {
    std::thread reader([&] { ReadUntilBroken(*stream, context); });
    // Cancelled only where nobody else ends it: the manager's own status would be lost.
    if (!WriteUntilBroken(*stream)) context.TryCancel();
    reader.join();
  }
  const grpc::Status status = stream->Finish();
  bool welcomed = false;
  {
    MutexLock lock(mutex_);
    context_ = nullptr;
    welcomed = welcomed_;
  }
  // Runs after a look at the state machine that is still asked for: its answer is nobody's.
  options_.engine->RunBetweenSteps([&](worker::EngineState&) { side_->Disconnect(); });
  if (welcomed) {
    told_refusal_.clear();
    options_.on_connected(false);
    LogWarning("stream to the cache manager {} ended: {}", options_.manager_address,
               status.error_message());
  } else {
    TellRefusal(status);
  }
  return welcomed;
}

void ManagerLink::TellRefusal(const grpc::Status& status) {
  // One that is not reached says so in ever other words: addresses, causes, times.
  const bool not_there = status.error_code() == grpc::StatusCode::UNAVAILABLE;
  std::string refusal = absl::StrCat(status.error_code(), not_there ? "" : status.error_message());
  {
    MutexLock lock(mutex_);
    if (stopped_ || refusal == told_refusal_) return;
  }
  told_refusal_ = std::move(refusal);
  LogWarning("the cache manager {} does not take this worker ({}): {}", options_.manager_address,
             absl::StatusCodeToString(static_cast<absl::StatusCode>(status.error_code())),
             status.error_message());
}

bool ManagerLink::StartPoll() {
  return options_.engine->PostBetweenSteps([this](worker::EngineState& state) {
    Polled polled{.messages = side_->Poll(NowMs(), state.load, kMaxMessagesPerPoll),
                  .more = side_->has_more(),
                  .heartbeat_interval_ms = side_->heartbeat_interval_ms()};
    {
      MutexLock lock(mutex_);
      polled_ = std::move(polled);
    }
    changed_.NotifyAll();
  });
}

std::optional<ManagerLink::Polled> ManagerLink::WaitForPolled(bool* broken) {
  const auto until = std::chrono::steady_clock::now() + kMaxEventDelay;
  MutexLock lock(mutex_);
  while (!polled_.has_value() && !stopped_ && !broken_) {
    if (!changed_.WaitUntil(mutex_, until)) break;
  }
  *broken = broken_ || stopped_;
  return std::exchange(polled_, std::nullopt);
}

bool ManagerLink::WriteUntilBroken(Stream& stream) {
  cm::SignOfLife life;
  life.Sent(NowMs(), cm::kHeartbeatIntervalMs);
  bool broken = false;
  bool more = true;
  while (!broken) {
    if (!WaitForWork(more ? std::chrono::milliseconds(0) : kMaxEventDelay, &broken)) return true;
    if (!StartPoll()) return false;
    std::optional<Polled> polled = WaitForPolled(&broken);
    while (!polled.has_value()) {
      if (broken) return true;
      const auto alive = life.Poll(NowMs());
      if (alive.has_value() && !stream.Write(ToProto(*alive, options_.description))) return true;
      polled = WaitForPolled(&broken);
    }
    more = polled->more;
    for (const cm::WorkerMessage& message : polled->messages) {
      if (!stream.Write(ToProto(message, options_.description))) return true;
      life.Sent(NowMs(), polled->heartbeat_interval_ms);
    }
  }
  return true;
}

void ManagerLink::ReadUntilBroken(Stream& stream, grpc::ClientContext& context) {
  v1::ManagerMessage message;
  while (stream.Read(&message)) {
    if (Handle(message)) continue;
    context.TryCancel();
    break;
  }
  {
    MutexLock lock(mutex_);
    broken_ = true;
  }
  changed_.NotifyAll();
}

bool ManagerLink::Handle(const v1::ManagerMessage& message) {
  auto plain = FromProto(message);
  absl::Status status = plain.status();
  if (status.ok()) {
    const auto* command = std::get_if<cm::EvictCommand>(&*plain);
    // Before the chains go, so that no running request of the session writes them anew.
    if (command != nullptr && command->release) options_.cancel_session(command->session);
    const bool engine_runs = options_.engine->RunBetweenSteps(
        [&](worker::EngineState&) { status = side_->Receive(*plain); });
    if (!engine_runs) return false;
  }
  if (!status.ok()) {
    LogWarning("the cache manager {} sent what no manager sends: {}", options_.manager_address,
               status.ToString());
    return false;
  }
  if (message.has_welcome()) {
    MutexLock lock(mutex_);
    if (!welcomed_) options_.on_connected(true);
    welcomed_ = true;
  }
  Wake();
  return true;
}

}  // namespace kvist::services
