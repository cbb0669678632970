// Sessions and their turns over a store: pure steps of cache_manager/turns.h, written by
// compare-and-set.
#ifndef KVIST_SERVICES_CACHE_MANAGER_TURN_BOOK_H_
#define KVIST_SERVICES_CACHE_MANAGER_TURN_BOOK_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cache_manager/turns.h"
#include "common/base/clock.h"
#include "proto/kvist/v1/cache_manager.pb.h"
#include "proto/kvist/v1/session.pb.h"
#include "services/runtime/metrics.h"
#include "services/store/session_store.h"

namespace kvist::services {

// Messages in, messages out; every field is checked. Errors: INVALID_ARGUMENT and OUT_OF_RANGE with
// the field named, NOT_FOUND, ALREADY_EXISTS, ABORTED (another turn is open, or another version),
// FAILED_PRECONDITION (another model), UNAVAILABLE (the store). A session whose time to live has
// passed is not found. Thread-safe; calls block on the store.
class TurnBook {
 public:
  // REQUIRES: all outlive the book.
  TurnBook(SessionStore* store, const Clock* clock, ManagerMetrics* metrics)
      : store_(store), clock_(clock), metrics_(metrics) {}

  absl::StatusOr<v1::BeginTurnResponse> BeginTurn(const v1::BeginTurnRequest& request);
  absl::StatusOr<v1::EndTurnResponse> EndTurn(const v1::EndTurnRequest& request);
  absl::StatusOr<v1::GetTurnResponse> GetTurn(const v1::GetTurnRequest& request);

  absl::StatusOr<v1::Session> Create(const v1::CreateSessionRequest& request);
  // A session whose history was made elsewhere.
  absl::StatusOr<v1::Session> Restore(const v1::RestoreSessionRequest& request);
  absl::StatusOr<v1::Session> Get(const v1::GetSessionRequest& request);
  absl::StatusOr<v1::ListSessionsResponse> List(const v1::ListSessionsRequest& request);
  absl::StatusOr<v1::Session> Reset(const v1::ResetSessionRequest& request);
  absl::StatusOr<v1::Session> Truncate(const v1::TruncateSessionRequest& request);
  absl::StatusOr<v1::Session> Fork(const v1::ForkSessionRequest& request);
  absl::Status Delete(const v1::DeleteSessionRequest& request);

  // Whether there is such a session.
  bool Knows(const SessionId& id);
  // Whether the store surely has no such session (one that has expired is there until it is
  // erased). UNAVAILABLE, DATA_LOSS: nobody can say.
  absl::StatusOr<bool> IsGone(const SessionId& id);
  // Erases sessions whose time to live has passed and returns them.
  std::vector<SessionId> DeleteExpired();
  absl::StatusOr<int64_t> Count() { return store_->Count(); }

 private:
  absl::StatusOr<v1::BeginTurnResponse> RenewTurn(const v1::BeginTurnRequest& request);
  int64_t NowMs() const;
  // Stores it as new, with what it has; `ttl_seconds` is checked.
  absl::StatusOr<v1::Session> CreateStored(StoredSession session, int64_t ttl_seconds);
  absl::StatusOr<StoredSession> Read(const std::string& id, History history);
  // Reads, lets `change` work on the record, and writes it if its version rose; tries again if
  // another change came between.
  absl::StatusOr<StoredSession> Change(const std::string& id, HistoryWrite history,
                                       const std::function<absl::Status(StoredSession&)>& change);
  absl::StatusOr<v1::Session> Cut(const std::string& id,
                                  const cache_manager::TruncateSessionRequest& cut,
                                  std::optional<uint64_t> expected_version);

  SessionStore* const store_;
  const Clock* const clock_;
  ManagerMetrics* const metrics_;
};

}  // namespace kvist::services

#endif  // KVIST_SERVICES_CACHE_MANAGER_TURN_BOOK_H_
