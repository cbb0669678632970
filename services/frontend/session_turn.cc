#include "services/frontend/session_turn.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "services/frontend/limits.h"

namespace kvist::services {

absl::StatusOr<std::unique_ptr<SessionTurn>> SessionTurn::Begin(const Options& options,
                                                                ManagerClient* manager,
                                                                RunningTurns* running) {
  v1::BeginTurnRequest request;
  request.set_session_id(options.session_id);
  request.set_turn_id(options.turn_id);
  request.set_request_id(options.record.request_id());
  request.set_request(options.record.SerializeAsString());
  request.set_seed(options.record.sampling().seed());
  request.set_model_fingerprint(options.model_fingerprint);
  request.set_lease_ms(std::clamp<int64_t>(options.lease.count(), 1, kMaxTurnLeaseMs));
  if (request.request().size() > kMaxTurnRecordBytes) {
    return FieldOutOfRange("prompt", absl::StrCat("a session's turn may have at most ",
                                                  kMaxTurnRecordBytes, " bytes"));
  }
  KVIST_ASSIGN_OR_RETURN(const v1::BeginTurnResponse begun, manager->BeginTurn(request));
  std::unique_ptr<SessionTurn> turn(
      new SessionTurn(options.session_id, options.turn_id, manager, running));
  turn->history_.assign(begun.history_ids().begin(), begun.history_ids().end());
  turn->cache_ = begun.cache();
  return turn;
}

std::unique_ptr<SessionTurn> SessionTurn::TakeOver(const std::string& session_id,
                                                   const std::string& turn_id,
                                                   const v1::GetTurnResponse& open,
                                                   ManagerClient* manager, RunningTurns* running) {
  std::unique_ptr<SessionTurn> turn(new SessionTurn(session_id, turn_id, manager, running));
  turn->history_.assign(open.history_ids().begin(), open.history_ids().end());
  turn->cache_ = open.cache();
  return turn;
}

SessionTurn::SessionTurn(const std::string& session_id, const std::string& turn_id,
                         ManagerClient* manager, RunningTurns* running)
    : session_id_(session_id),
      turn_id_(turn_id),
      manager_(manager),
      entry_(running, session_id, turn_id) {}

SessionTurn::~SessionTurn() {
  if (ended_) return;
  v1::EndTurnRequest request;
  request.set_session_id(session_id_);
  request.set_turn_id(turn_id_);
  request.set_reason(v1::ERROR);
  request.set_discard(true);
  // One try: if the manager is away, the next turn's begin finds this one open and its frontend
  // done.
  manager_->EndTurn(request, MonotonicTime::min());
}

TurnSaved SessionTurn::End(const Outcome& outcome, MonotonicTime until) {
  ended_ = true;
  v1::EndTurnRequest request;
  request.set_session_id(session_id_);
  request.set_turn_id(turn_id_);
  request.mutable_appended_ids()->Add(outcome.prompt_ids.begin(), outcome.prompt_ids.end());
  request.mutable_appended_ids()->Add(outcome.generated_ids.begin(), outcome.generated_ids.end());
  request.set_prompt_ids(static_cast<int64_t>(outcome.prompt_ids.size()));
  request.set_reason(outcome.reason);
  return manager_->EndTurn(request, until);
}

}  // namespace kvist::services
