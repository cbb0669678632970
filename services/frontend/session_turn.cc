#include "services/frontend/session_turn.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "services/frontend/limits.h"

namespace kvist::services {

namespace {

bool MayHaveHappened(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) ||
         absl::IsCancelled(status) || absl::IsInternal(status) || absl::IsUnknown(status);
}

}  // namespace

absl::StatusOr<std::unique_ptr<SessionTurn>> SessionTurn::Begin(const Options& options,
                                                                ManagerClient* manager,
                                                                RunningTurns* running) {
  v1::BeginTurnRequest request;
  request.set_session_id(options.session.value());
  request.set_turn_id(options.turn.value());
  request.set_request_id(options.record.request_id());
  request.set_request(options.record.SerializeAsString());
  request.set_seed(options.record.sampling().seed());
  request.set_model_fingerprint(options.model_fingerprint);
  request.set_lease_ms(kLease.count());
  if (request.request().size() > kMaxTurnRecordBytes) {
    return FieldOutOfRange("prompt", absl::StrCat("a session's turn may have at most ",
                                                  kMaxTurnRecordBytes, " bytes"));
  }
  auto entry = running->TryEnter(options.session, options.turn);
  if (entry == nullptr) return absl::AbortedError("the turn is running already");
  std::unique_ptr<SessionTurn> turn(
      new SessionTurn(options.session, options.turn, manager, std::move(entry)));
  const auto answer = manager->BeginTurn(request);
  // Without an answer it may have begun.
  turn->ours_to_discard_ = answer.ok() || MayHaveHappened(answer.status());
  KVIST_RETURN_IF_ERROR(answer.status());
  const v1::BeginTurnResponse& begun = *answer;
  turn->history_.assign(begun.history_ids().begin(), begun.history_ids().end());
  turn->cache_ = begun.cache();
  return turn;
}

absl::StatusOr<std::unique_ptr<SessionTurn>> SessionTurn::TakeOver(
    const v1::ResumeRequest& resume, const v1::GetTurnResponse& open, ManagerClient* manager,
    std::unique_ptr<RunningTurns::Entry> entry) {
  const SessionId session(resume.session_id());
  const TurnId id(resume.turn_id());
  KVIST_RETURN_IF_ERROR(manager->RenewTurn(session, id, kLease));
  std::unique_ptr<SessionTurn> turn(new SessionTurn(session, id, manager, std::move(entry)));
  turn->history_.assign(open.history_ids().begin(), open.history_ids().end());
  turn->cache_ = open.cache();
  return turn;
}

SessionTurn::SessionTurn(const SessionId& session, const TurnId& turn, ManagerClient* manager,
                         std::unique_ptr<RunningTurns::Entry> entry)
    : session_(session), turn_(turn), manager_(manager), entry_(std::move(entry)) {}

SessionTurn::~SessionTurn() {
  if (!ours_to_discard_) return;
  v1::EndTurnRequest request;
  request.set_session_id(session_.value());
  request.set_turn_id(turn_.value());
  request.set_reason(v1::ERROR);
  request.set_discard(true);
  // One try: if the manager is away, the turn stays open until its lease is over.
  manager_->EndTurn(request, MonotonicTime::min());
}

TurnSaved SessionTurn::End(const Outcome& outcome, MonotonicTime until) {
  ours_to_discard_ = false;
  v1::EndTurnRequest request;
  request.set_session_id(session_.value());
  request.set_turn_id(turn_.value());
  request.mutable_appended_ids()->Add(outcome.prompt_ids.begin(), outcome.prompt_ids.end());
  request.mutable_appended_ids()->Add(outcome.generated_ids.begin(), outcome.generated_ids.end());
  request.set_prompt_ids(static_cast<int64_t>(outcome.prompt_ids.size()));
  request.set_answer_text_bytes(outcome.text_bytes);
  request.set_reason(outcome.reason);
  return manager_->EndTurn(request, until);
}

void SessionTurn::LeaveOpen() {
  ours_to_discard_ = false;
  // One try: without it the turn has what is left of its lease, two thirds or more.
  manager_->RenewTurn(session_, turn_, kLease).IgnoreError();
}

}  // namespace kvist::services
