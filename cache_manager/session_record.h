// What the store keeps of a session.
#ifndef KVIST_CACHE_MANAGER_SESSION_RECORD_H_
#define KVIST_CACHE_MANAGER_SESSION_RECORD_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "cache_manager/attention_span.h"
#include "common/base/ids.h"

namespace kvist::cache_manager {

// How a turn ended. Cancelled, expired and failed turns keep their partial answer.
enum class TurnFinish : uint8_t { kNone, kStop, kLength, kCancelled, kDeadline, kError };

// A turn that began and has not ended.
struct OpenTurn {
  TurnId id;
  RequestId request;
  uint64_t seed = 0;
  int64_t begun_wall_ms = 0;
  int64_t expires_wall_ms = 0;  // from then on another turn may take its place

  friend bool operator==(const OpenTurn&, const OpenTurn&) = default;
};

// Plain data; limits in limits.h, checked by Validate. Wall times are milliseconds since 1970 UTC.
struct SessionRecord {
  SessionId id;
  TenantId tenant;
  std::string model;
  std::vector<int32_t> token_ids;  // the whole history; at most kMaxSessionTokens
  std::string allocation;          // "paged", "static", "none"; empty: the server's default
  AttentionSpan attention;
  std::string kv_format;  // "f16", ...; empty: the worker's default
  std::string offload;    // "off", "disk", "host"; empty: off
  uint64_t version = 0;   // rises by one with every stored change
  int64_t created_wall_ms = 0;
  int64_t last_used_wall_ms = 0;
  int64_t time_to_live_ms = 0;  // after the last use; 0: kept until deleted
  TurnFinish last_finish = TurnFinish::kNone;
  TurnId last_turn;  // ended last: a repeated EndTurn is recognised by it
  std::optional<OpenTurn> open_turn;

  friend bool operator==(const SessionRecord&, const SessionRecord&) = default;
};

// INVALID_ARGUMENT or OUT_OF_RANGE with the field named.
absl::Status Validate(const SessionRecord& record);

}  // namespace kvist::cache_manager

#endif  // KVIST_CACHE_MANAGER_SESSION_RECORD_H_
