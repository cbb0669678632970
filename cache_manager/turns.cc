#include "cache_manager/turns.h"

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "cache_manager/limits.h"
#include "common/base/status.h"

namespace kvist::cache_manager {
namespace {

absl::Status CheckId(std::string_view field, std::string_view id) {
  if (id.empty()) return InvalidField(field, "empty");
  if (id.size() > kMaxIdBytes) return InvalidField(field, "too long");
  return absl::OkStatus();
}

absl::Status CheckTokens(std::string_view field, std::span<const int32_t> tokens) {
  const bool negative = std::any_of(tokens.begin(), tokens.end(), [](int32_t t) { return t < 0; });
  return negative ? InvalidField(field, "negative token id") : absl::OkStatus();
}

bool HasOpenTurn(const SessionRecord& record, int64_t now_wall_ms) {
  return record.open_turn.has_value() && now_wall_ms < record.open_turn->expires_wall_ms;
}

bool EndsWith(std::span<const int32_t> tokens, std::span<const int32_t> end) {
  return end.size() <= tokens.size() && std::ranges::equal(tokens.last(end.size()), end);
}

absl::Status LostRace(const char* what, const SessionRecord& record) {
  return absl::AbortedError(std::string(what) + "; the session is at version " +
                            std::to_string(record.version));
}

void Changed(int64_t now_wall_ms, SessionRecord& record) {
  ++record.version;
  record.last_used_wall_ms = std::max(record.last_used_wall_ms, now_wall_ms);
}

}  // namespace

absl::Status Validate(const SessionRecord& record) {
  KVIST_RETURN_IF_ERROR(CheckId("session", record.id.value()));
  if (record.tenant.value().size() > kMaxIdBytes) return InvalidField("tenant", "too long");
  if (record.model.size() > kMaxNameBytes) return InvalidField("model", "too long");
  if (record.allocation.size() > kMaxNameBytes) return InvalidField("allocation", "too long");
  if (record.offload.size() > kMaxNameBytes) return InvalidField("offload", "too long");
  KVIST_RETURN_IF_ERROR(ValidateAttention(record.attention, kMaxWindowTokens));
  if (record.kv_format.size() > kMaxNameBytes) return InvalidField("kv_format", "too long");
  if (record.time_to_live_ms < 0) return InvalidField("time_to_live_ms", "negative");
  if (record.token_ids.size() > kMaxSessionTokens) {
    return FieldOutOfRange("token_ids", "longer than a session may be");
  }
  KVIST_RETURN_IF_ERROR(CheckTokens("token_ids", record.token_ids));
  if (!record.open_turn.has_value()) return absl::OkStatus();
  KVIST_RETURN_IF_ERROR(CheckId("open_turn.id", record.open_turn->id.value()));
  return CheckId("open_turn.request", record.open_turn->request.value());
}

absl::Status BeginTurn(const BeginTurnRequest& request, int64_t now_wall_ms,
                       SessionRecord& record) {
  KVIST_RETURN_IF_ERROR(CheckId("turn", request.turn.value()));
  KVIST_RETURN_IF_ERROR(CheckId("request", request.request.value()));
  if (request.lease_ms <= 0 || request.lease_ms > kMaxTurnLeaseMs) {
    return InvalidField("lease_ms", "out of range");
  }
  const int64_t expires = now_wall_ms + request.lease_ms;
  if (record.open_turn.has_value() && record.open_turn->id == request.turn) {
    record.open_turn->expires_wall_ms = std::max(record.open_turn->expires_wall_ms, expires);
    Changed(now_wall_ms, record);
    return absl::OkStatus();
  }
  if (HasOpenTurn(record, now_wall_ms)) return LostRace("another turn is open", record);
  if (request.expected_version.has_value() && *request.expected_version != record.version) {
    return LostRace("the session changed", record);
  }
  record.open_turn = OpenTurn{.id = request.turn,
                              .request = request.request,
                              .seed = request.seed,
                              .begun_wall_ms = now_wall_ms,
                              .expires_wall_ms = expires};
  Changed(now_wall_ms, record);
  return absl::OkStatus();
}

absl::Status EndTurn(const EndTurnRequest& request, int64_t now_wall_ms, SessionRecord& record) {
  KVIST_RETURN_IF_ERROR(CheckId("turn", request.turn.value()));
  if (request.finish == TurnFinish::kNone) return InvalidField("finish", "missing");
  KVIST_RETURN_IF_ERROR(CheckTokens("appended", request.appended));
  if (!record.open_turn.has_value() && record.last_turn == request.turn) {
    return EndsWith(record.token_ids, request.appended)
               ? absl::OkStatus()
               : LostRace("the turn has ended with other tokens", record);
  }
  if (!record.open_turn.has_value() || record.open_turn->id != request.turn) {
    return LostRace("the turn is not the open one", record);
  }
  if (request.appended.size() > kMaxSessionTokens - record.token_ids.size()) {
    return FieldOutOfRange("appended", "the session would be longer than it may be");
  }
  record.token_ids.insert(record.token_ids.end(), request.appended.begin(), request.appended.end());
  record.last_finish = request.finish;
  record.last_turn = request.turn;
  record.open_turn.reset();
  Changed(now_wall_ms, record);
  return absl::OkStatus();
}

absl::Status TruncateSession(const TruncateSessionRequest& request, int64_t now_wall_ms,
                             SessionRecord& record) {
  if (HasOpenTurn(record, now_wall_ms)) return LostRace("a turn is open", record);
  std::vector<int32_t>& ids = record.token_ids;
  if (request.tokens > ids.size()) {
    return FieldOutOfRange(
        "tokens", "beyond the session's history of " + std::to_string(ids.size()) + " tokens");
  }
  if (request.kept == TruncateSessionRequest::Kept::kLast) {
    ids.erase(ids.begin(), ids.end() - static_cast<std::ptrdiff_t>(request.tokens));
  } else {
    ids.resize(request.tokens);
  }
  record.open_turn.reset();
  Changed(now_wall_ms, record);
  return absl::OkStatus();
}

absl::Status ForkSession(const SessionId& id, int64_t now_wall_ms, SessionRecord& record) {
  KVIST_RETURN_IF_ERROR(CheckId("id", id.value()));
  if (HasOpenTurn(record, now_wall_ms)) return LostRace("a turn is open", record);
  record.id = id;
  record.version = 0;
  record.created_wall_ms = now_wall_ms;
  record.open_turn.reset();
  Changed(now_wall_ms, record);
  return absl::OkStatus();
}

bool IsExpired(const SessionRecord& record, int64_t now_wall_ms) {
  if (record.time_to_live_ms == 0 || HasOpenTurn(record, now_wall_ms)) return false;
  return now_wall_ms - record.last_used_wall_ms >= record.time_to_live_ms;
}

}  // namespace kvist::cache_manager
