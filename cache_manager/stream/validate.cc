#include "cache_manager/stream/validate.h"

#include <limits>
#include <span>
#include <string_view>

#include "cache_manager/block_key.h"
#include "cache_manager/limits.h"
#include "common/base/status.h"

namespace kvist::cache_manager {
namespace {

// Sequence numbers stay far from overflow: at a million events per second this is 292,000 years.
constexpr uint64_t kMaxSeq = std::numeric_limits<uint64_t>::max() / 2;

absl::Status CheckText(std::string_view field, std::string_view text, size_t max_bytes) {
  if (text.size() > max_bytes) return InvalidField(field, "too long");
  return absl::OkStatus();
}

absl::Status CheckId(std::string_view field, std::string_view id) {
  if (id.empty()) return InvalidField(field, "empty");
  return CheckText(field, id, kMaxIdBytes);
}

absl::Status CheckSeq(std::string_view field, uint64_t seq) {
  return seq <= kMaxSeq ? absl::OkStatus() : InvalidField(field, "too large");
}

absl::Status CheckPool(const PoolSpec& pool, uint32_t block_tokens) {
  KVIST_RETURN_IF_ERROR(CheckText("pools.group", pool.group, kMaxNameBytes));
  KVIST_RETURN_IF_ERROR(CheckText("pools.format", pool.format, kMaxNameBytes));
  if (pool.window_tokens > kMaxWindowTokens) {
    return InvalidField("pools.window_tokens", "too large");
  }
  if (pool.block_tokens != block_tokens) {
    return InvalidField("pools.block_tokens", "differs from the worker's");
  }
  if (pool.bytes_per_block == 0 || pool.bytes_per_block > kMaxBytesPerBlock) {
    return InvalidField("pools.bytes_per_block", "out of range");
  }
  if (pool.num_blocks == 0 || pool.num_blocks > kMaxBlocksPerPool) {
    return InvalidField("pools.num_blocks", "out of range");
  }
  return absl::OkStatus();
}

struct EventBounds {
  size_t num_pools;
  bool snapshot;
  size_t keys = 0;

  absl::Status CheckPoolIndex(PoolIndex pool) const {
    return pool < num_pools ? absl::OkStatus() : InvalidField("events.pool", "no such pool");
  }
  absl::Status operator()(const BlockStored& e) const { return CheckPoolIndex(e.pool); }
  absl::Status operator()(const BlockEvicted& e) const {
    if (snapshot) return InvalidField("events", "a snapshot has no evictions");
    return CheckPoolIndex(e.pool);
  }
  absl::Status operator()(const SessionHolds& e) {
    keys += e.keys.size();
    if (e.keys.size() > kMaxKeysPerEvent) return InvalidField("events.keys", "too many");
    KVIST_RETURN_IF_ERROR(CheckId("events.session", e.session.value()));
    KVIST_RETURN_IF_ERROR(CheckText("events.tenant", e.tenant.value(), kMaxIdBytes));
    return CheckPoolIndex(e.pool);
  }
  absl::Status operator()(const SessionReleased& e) const {
    if (snapshot) return InvalidField("events", "a snapshot has no releases");
    return CheckId("events.session", e.session.value());
  }
  absl::Status operator()(const SessionUnnamed& e) const {
    KVIST_RETURN_IF_ERROR(CheckId("events.session", e.session.value()));
    if (e.partial_blocks > kMaxBlocksPerPool || e.reserved_blocks > kMaxBlocksPerPool) {
      return InvalidField("events.blocks", "more than a pool can have");
    }
    return CheckPoolIndex(e.pool);
  }
  absl::Status operator()(const SessionPhaseChanged& e) const {
    return CheckId("events.session", e.session.value());
  }
};

absl::Status CheckEvents(std::span<const Event> events, size_t num_pools, bool snapshot) {
  if (events.size() > kMaxEventsPerBatch) return InvalidField("events", "too many");
  EventBounds bounds{.num_pools = num_pools, .snapshot = snapshot};
  for (const Event& event : events) KVIST_RETURN_IF_ERROR(std::visit(bounds, event));
  if (bounds.keys > kMaxKeysPerBatch) return InvalidField("events.keys", "too many in all");
  return absl::OkStatus();
}

}  // namespace

absl::Status Validate(const Hello& hello) {
  const WorkerInfo& info = hello.info;
  if (hello.protocol_version < kOldestProtocolVersion ||
      hello.protocol_version > kProtocolVersion) {
    return InvalidField("protocol_version", "not understood here");
  }
  KVIST_RETURN_IF_ERROR(CheckId("worker_id", info.id.value()));
  if (info.incarnation.empty()) return InvalidField("incarnation", "zero");
  KVIST_RETURN_IF_ERROR(CheckText("model_fingerprint", info.model_fingerprint, kMaxNameBytes));
  KVIST_RETURN_IF_ERROR(CheckText("numerics_id", info.numerics_id, kMaxNameBytes));
  KVIST_RETURN_IF_ERROR(CheckText("address", info.address, kMaxNameBytes));
  if (!IsBlockSize(info.block_tokens)) {
    return InvalidField("block_tokens", "must be 16, 32, 64 or 128");
  }
  if (info.pools.empty() || info.pools.size() > kMaxPoolsPerWorker) {
    return InvalidField("pools", "out of range");
  }
  for (const PoolSpec& pool : info.pools) {
    KVIST_RETURN_IF_ERROR(CheckPool(pool, info.block_tokens));
  }
  return CheckSeq("last_seq", hello.last_seq);
}

absl::Status Validate(const EventBatch& batch, size_t num_pools) {
  if (batch.first_seq == 0) return InvalidField("first_seq", "zero");
  KVIST_RETURN_IF_ERROR(CheckSeq("first_seq", batch.first_seq));
  return CheckEvents(batch.events, num_pools, /*snapshot=*/false);
}

absl::Status Validate(const Heartbeat& heartbeat, size_t num_pools) {
  if (heartbeat.digests.size() != num_pools) return InvalidField("digests", "not one per pool");
  return CheckSeq("seq", heartbeat.seq);
}

absl::Status Validate(const SnapshotChunk& chunk, size_t num_pools) {
  KVIST_RETURN_IF_ERROR(CheckSeq("end_seq", chunk.end_seq));
  if (chunk.base_seq > chunk.end_seq) return InvalidField("base_seq", "after end_seq");
  return CheckEvents(chunk.events, num_pools, /*snapshot=*/true);
}

absl::Status Validate(const CommandOutcome& outcome) {
  KVIST_RETURN_IF_ERROR(CheckId("request", outcome.request.value()));
  return CheckText("reason", outcome.reason, kMaxTextBytes);
}

absl::Status Validate(const EvictCommand& command) {
  KVIST_RETURN_IF_ERROR(CheckId("request", command.request.value()));
  KVIST_RETURN_IF_ERROR(CheckText("session", command.session.value(), kMaxIdBytes));
  if (command.keys.size() > kMaxKeysPerCommand) return InvalidField("keys", "too many");
  if (command.keep_tokens.has_value() && (command.session.empty() || command.release)) {
    return InvalidField("keep_tokens", "is for a session that stays");
  }
  const int targets = (command.keys.empty() ? 0 : 1) + (command.session.empty() ? 0 : 1) +
                      (command.blocks == 0 ? 0 : 1);
  if (targets != 1) return InvalidField("target", "need exactly one of keys, session, blocks");
  return absl::OkStatus();
}

absl::Status Validate(const ForkCommand& command) {
  KVIST_RETURN_IF_ERROR(CheckId("request", command.request.value()));
  KVIST_RETURN_IF_ERROR(CheckId("session", command.session.value()));
  return CheckId("new_session", command.new_session.value());
}

}  // namespace kvist::cache_manager
