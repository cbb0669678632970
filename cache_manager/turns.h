// The turns of a session as pure steps on its record: whoever stores the result under "only if the
// version is still the one that was read" has a compare-and-set, alone or with other managers.
#ifndef KVIST_CACHE_MANAGER_TURNS_H_
#define KVIST_CACHE_MANAGER_TURNS_H_

#include <cstdint>
#include <optional>
#include <span>

#include "absl/status/status.h"
#include "cache_manager/session_record.h"

namespace kvist::cache_manager {

struct BeginTurnRequest {
  TurnId turn;
  RequestId request;
  uint64_t seed = 0;
  std::optional<uint64_t> expected_version;  // nullopt: any
  int64_t lease_ms = 0;  // how long the turn may stay open; 1 .. kMaxTurnLeaseMs
};

struct EndTurnRequest {
  TurnId turn;
  std::span<const int32_t> appended;  // the turn's prompt and answer, behind the history
  TurnFinish finish = TurnFinish::kStop;
};

// What is left of a history. Where the first tokens go, the others get new positions: their KV is
// another, and the next turn computes it.
struct TruncateSessionRequest {
  enum class Kept : uint8_t { kFirst, kLast };
  Kept kept = Kept::kLast;
  uint64_t tokens = 0;  // 0 empties it
};

// All steps change `record` only on success, raise its version by one, and mark it used at
// `now_wall_ms`.

// Opens a turn. ABORTED: another turn is open and not expired, or the version is another (the
// message has it). The same turn id again while it is open is a retry: OK, and only the lease is
// renewed. INVALID_ARGUMENT: ids, lease.
absl::Status BeginTurn(const BeginTurnRequest& request, int64_t now_wall_ms, SessionRecord& record);
// Appends and closes. ABORTED: that turn is not the open one (another took its place after it
// expired), or it has ended with other tokens. The turn that ended last again, with the tokens that
// the history ends with, is a retry: OK, nothing changes. OUT_OF_RANGE: the
// history would pass kMaxSessionTokens; the turn stays open. INVALID_ARGUMENT: a negative token id,
// no finish.
absl::Status EndTurn(const EndTurnRequest& request, int64_t now_wall_ms, SessionRecord& record);
// Cuts the history to its first or last tokens. ABORTED: a turn is open. OUT_OF_RANGE: beyond the
// history.
absl::Status TruncateSession(const TruncateSessionRequest& request, int64_t now_wall_ms,
                             SessionRecord& record);

// Makes `record` that of a new session, at version 1, with the same history, model, cache options
// and time to live. ABORTED: a turn is open.
absl::Status ForkSession(const SessionId& id, int64_t now_wall_ms, SessionRecord& record);

// Whether the session's time to live has passed. A session with an open, unexpired turn never is.
bool IsExpired(const SessionRecord& record, int64_t now_wall_ms);

}  // namespace kvist::cache_manager

#endif  // KVIST_CACHE_MANAGER_TURNS_H_
