// A turn of a session: begun at the cache manager before the first token, ended there before the
// client hears of the end.
#ifndef KVIST_SERVICES_FRONTEND_SESSION_TURN_H_
#define KVIST_SERVICES_FRONTEND_SESSION_TURN_H_

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/ids.h"
#include "proto/kvist/v1/cache_manager.pb.h"
#include "proto/kvist/v1/inference.pb.h"
#include "services/frontend/manager_client.h"
#include "services/frontend/running_turns.h"

namespace kvist::services {

// One open turn. Dropped without End or LeaveOpen, one that was begun here is given up: nothing is
// appended; one that was taken over stays open until its lease is over, for another try.
// Single-threaded.
class SessionTurn {
 public:
  // What the manager is to keep for a replay: the request as it came, id and seed filled in.
  struct Options {
    SessionId session;
    TurnId turn;
    v1::GenerateRequest record;
    std::string model_fingerprint;
  };
  // The session is free again so long after its frontend has died. LeaseKeeper renews it.
  static constexpr std::chrono::milliseconds kLease{30'000};
  // NOT_FOUND: no such session. ABORTED: another turn is open. FAILED_PRECONDITION: begun with
  // another model. UNAVAILABLE (kNoManager). OUT_OF_RANGE: the record is larger than 4 MiB.
  static absl::StatusOr<std::unique_ptr<SessionTurn>> Begin(const Options& options,
                                                            ManagerClient* manager,
                                                            RunningTurns* running);
  // A turn that another frontend began and left open. ABORTED: it is not open any more. UNAVAILABLE
  // (kNoManager). REQUIRES: `entry` is that turn's.
  static absl::StatusOr<std::unique_ptr<SessionTurn>> TakeOver(
      const v1::ResumeRequest& resume, const v1::GetTurnResponse& open, ManagerClient* manager,
      std::unique_ptr<RunningTurns::Entry> entry);
  ~SessionTurn();
  SessionTurn(const SessionTurn&) = delete;
  SessionTurn& operator=(const SessionTurn&) = delete;

  const std::vector<int32_t>& history() const { return history_; }
  const v1::CacheParams& cache() const { return cache_; }
  const TurnId& turn() const { return turn_; }
  // The session was deleted meanwhile.
  bool cancelled() const { return entry_->cancelled(); }

  struct Outcome {
    std::span<const int32_t> prompt_ids;  // new ones, without the history
    std::span<const int32_t> generated_ids;
    int64_t text_bytes = 0;  // of the answer's text that the client got
    v1::FinishReason reason = v1::FINISH_REASON_UNSPECIFIED;
  };
  // Appends and closes; waits for the store, at most until `until`. Once.
  TurnSaved End(const Outcome& outcome, MonotonicTime until);
  // No worker could go on: nothing is appended, and the turn stays open under a whole lease, for
  // Resume. In place of End.
  void LeaveOpen();

 private:
  SessionTurn(const SessionId& session, const TurnId& turn, ManagerClient* manager,
              std::unique_ptr<RunningTurns::Entry> entry);

  const SessionId session_;
  const TurnId turn_;
  ManagerClient* const manager_;
  const std::unique_ptr<RunningTurns::Entry> entry_;
  std::vector<int32_t> history_;
  v1::CacheParams cache_;
  bool ours_to_discard_ = false;
};

}  // namespace kvist::services

#endif  // KVIST_SERVICES_FRONTEND_SESSION_TURN_H_
