// What the cluster asks of workers: commands, and the wait for their outcomes.
#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cache_manager/limits.h"
#include "common/base/status.h"
#include "services/cache_manager/answers.h"
#include "services/cache_manager/cluster.h"
#include "services/runtime/id_syntax.h"

namespace kvist::services {
namespace {

namespace cm = ::kvist::cache_manager;

// The command without its request id. INVALID_ARGUMENT with the field named.
absl::StatusOr<cm::EvictCommand> CommandOf(const v1::EvictRequest& request) {
  cm::EvictCommand command;
  switch (request.what_case()) {
    case v1::EvictRequest::kSession:
      KVIST_RETURN_IF_ERROR(
          CheckId("session.session_id", request.session().session_id(), EmptyId::kRefused));
      if (request.session().release()) {
        return InvalidField("session.release", "is for deleted sessions: use Delete");
      }
      command.session = SessionId(request.session().session_id());
      return command;
    case v1::EvictRequest::kKeys: {
      if (request.keys().pool() >= cm::kMaxPoolsPerWorker)
        return InvalidField("keys.pool", "no such pool");
      command.pool = static_cast<cm::PoolIndex>(request.keys().pool());
      KVIST_ASSIGN_OR_RETURN(
          command.keys, KeysFromBytes("keys.keys", request.keys().keys(), cm::kMaxKeysPerCommand));
      if (command.keys.empty()) return InvalidField("keys.keys", "must not be empty");
      return command;
    }
    case v1::EvictRequest::kCount:
      if (request.count().pool() >= cm::kMaxPoolsPerWorker)
        return InvalidField("count.pool", "no such pool");
      if (request.count().blocks() < 1 ||
          static_cast<uint32_t>(request.count().blocks()) > cm::kMaxBlocksPerPool) {
        return InvalidField("count.blocks", absl::StrCat("must be 1 .. ", cm::kMaxBlocksPerPool));
      }
      command.pool = static_cast<cm::PoolIndex>(request.count().pool());
      command.blocks = static_cast<uint32_t>(request.count().blocks());
      return command;
    case v1::EvictRequest::WHAT_NOT_SET:
      break;
  }
  return InvalidField("what", "must be session, keys or count");
}

cm::EvictCommand ReleaseCommand(const SessionId& session) {
  return {.request = RequestId(DrawId("release-")), .session = session, .release = true};
}

}  // namespace

absl::StatusOr<v1::EvictResponse> Cluster::Evict(const v1::EvictRequest& request,
                                                 std::chrono::steady_clock::time_point deadline) {
  KVIST_ASSIGN_OR_RETURN(cm::EvictCommand command, CommandOf(request));
  KVIST_RETURN_IF_ERROR(CheckId("request_id", request.request_id(), EmptyId::kAllowed));
  command.request =
      RequestId(request.request_id().empty() ? DrawId("evict-") : request.request_id());
  MutexLock lock(mutex_);
  std::vector<WorkerId> workers;
  if (request.worker_id().empty()) {
    workers = ConnectedWorkers();
  } else {
    workers.emplace_back(request.worker_id());
  }
  v1::EvictResponse response;
  std::vector<OutcomeKey> sent;
  for (const WorkerId& worker : workers) {
    const absl::Status status = side_.Send(worker, command);
    if (status.ok()) {
      sent.emplace_back(worker, command.request);
      awaited_.insert(sent.back());
      continue;
    }
    if (!request.worker_id().empty()) return status;
    const cm::CommandOutcome refused{.request = command.request,
                                     .result = cm::CommandResult::kRefused,
                                     .reason = std::string(status.message())};
    FillOutcome(worker, &refused, response.add_outcomes());
  }
  Dispatch();
  WaitForOutcomes(sent, deadline);
  for (const OutcomeKey& key : sent) {
    const auto came = outcomes_.find(key);
    FillOutcome(key.first, came == outcomes_.end() ? nullptr : &came->second,
                response.add_outcomes());
    outcomes_.erase(key);
    awaited_.erase(key);
  }
  return response;
}

void Cluster::WaitForOutcomes(const std::vector<OutcomeKey>& sent,
                              std::chrono::steady_clock::time_point deadline) {
  const auto all_came = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return std::all_of(sent.begin(), sent.end(),
                       [&](const OutcomeKey& key)
                           ABSL_NO_THREAD_SAFETY_ANALYSIS { return outcomes_.contains(key); });
  };
  while (!all_came()) {
    if (!outcome_came_.WaitUntil(mutex_, deadline)) break;
  }
}

void Cluster::ForkSession(const SessionId& session, const SessionId& new_session,
                          std::chrono::steady_clock::time_point deadline) {
  const cm::ForkCommand command{
      .request = RequestId(DrawId("fork-")), .session = session, .new_session = new_session};
  MutexLock lock(mutex_);
  SendToAll(command, command.request, deadline);
}

void Cluster::CutSession(const SessionId& session, uint64_t keep_tokens,
                         std::chrono::steady_clock::time_point deadline) {
  const cm::EvictCommand command{
      .request = RequestId(DrawId("cut-")), .session = session, .keep_tokens = keep_tokens};
  MutexLock lock(mutex_);
  SendToAll(command, command.request, deadline);
}

template <typename Command>
void Cluster::SendToAll(const Command& command, const RequestId& request,
                        std::chrono::steady_clock::time_point deadline) {
  std::vector<OutcomeKey> sent;
  for (const WorkerId& worker : ConnectedWorkers()) {
    if (!side_.Send(worker, command).ok()) continue;
    sent.emplace_back(worker, request);
    awaited_.insert(sent.back());
  }
  Dispatch();
  WaitForOutcomes(sent, deadline);
  for (const OutcomeKey& key : sent) {
    outcomes_.erase(key);
    awaited_.erase(key);
  }
}

void Cluster::ReleaseSession(const SessionId& session,
                             std::chrono::steady_clock::time_point deadline) {
  const cm::EvictCommand command = ReleaseCommand(session);
  MutexLock lock(mutex_);
  // One that is away is looked through when it comes back.
  SendToAll(command, command.request, deadline);
}

void Cluster::ReleaseNamesake(const SessionId& session,
                              std::chrono::steady_clock::time_point deadline) {
  if (MemoryOf(session).ok()) ReleaseSession(session, deadline);
}

absl::Status Cluster::ReleaseSessionOn(const WorkerId& worker, const SessionId& session) {
  MutexLock lock(mutex_);
  const absl::Status status = side_.Send(worker, ReleaseCommand(session));
  Dispatch();
  return status;
}

}  // namespace kvist::services
