// The messages between a worker and a cache manager as plain values. The gRPC adapters copy them
// from and to proto/kvist/v1; everything in them is untrusted until validate.h has seen it.
#ifndef KVIST_CACHE_MANAGER_STREAM_MESSAGES_H_
#define KVIST_CACHE_MANAGER_STREAM_MESSAGES_H_

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "cache_manager/digest.h"
#include "cache_manager/events.h"
#include "cache_manager/worker_info.h"
#include "common/base/ids.h"

namespace kvist::cache_manager {

// The version spoken here. Earlier ones are understood too: workers of version 1 know no
// DigestRequest, those of 2 no ForkCommand, and get none.
inline constexpr uint32_t kProtocolVersion = 3;
inline constexpr uint32_t kOldestProtocolVersion = 1;

// Worker to manager. First message of a stream.
struct Hello {
  uint32_t protocol_version = kProtocolVersion;
  WorkerInfo info;
  uint64_t last_seq = 0;  // newest event of the worker's log
};
// Events first_seq, first_seq + 1, ...
struct EventBatch {
  uint64_t first_seq = 0;
  std::vector<Event> events;
  WorkerLoad load;
};
// Sent when nothing waits: every event up to `seq` was sent before.
struct Heartbeat {
  uint64_t seq = 0;
  std::vector<PoolDigest> digests;  // by pool, after event `seq`
  WorkerLoad load;
};
// Sent instead while the engine is in a step, when nobody may look at its pools: the worker lives.
// Says nothing of events, digests or load, so that no mirror is believed for it.
struct Alive {};
// Part `index` of the snapshot that `resync_id` asked for. Event kinds: stored, holds, unnamed,
// phase.
struct SnapshotChunk {
  uint64_t resync_id = 0;
  uint64_t base_seq = 0;  // newest event when the snapshot began; the same in all parts
  uint32_t index = 0;     // 0, 1, ...
  uint64_t end_seq = 0;   // newest event when this part was read
  std::vector<Event> events;
  bool last = false;
};
enum class CommandResult : uint8_t { kDone, kClipped, kRefused };
struct CommandOutcome {
  RequestId request;
  CommandResult result = CommandResult::kDone;
  uint64_t evicted_blocks = 0;
  uint64_t left_blocks = 0;  // clipped: in use, or needed by others
  std::string reason;        // refused: why
};
using WorkerMessage =
    std::variant<Hello, EventBatch, Heartbeat, SnapshotChunk, CommandOutcome, Alive>;

// Manager to worker. Answer to Hello.
struct Welcome {
  uint32_t protocol_version = kProtocolVersion;
  uint32_t heartbeat_interval_ms = 0;
  uint64_t intent_version = 0;  // newest version of the intent that the manager knows
};
// The mirror needs a snapshot. A newer request replaces an older one.
struct ResyncRequest {
  uint64_t resync_id = 0;
};
// Somebody doubts the mirror: the next heartbeat, with its digests, is due now. From version 2 on.
struct DigestRequest {};
// Evicts what is unreferenced of exactly one of: keys in `pool`, a session's chains in every pool
// (blocks that another session holds stay), or up to `blocks` of `pool` in the policy's order.
// Idempotent by request id. `release`, with a session: it was deleted, so it is forgotten as well,
// and the cause is closed. `keep_tokens`, with a session: its history was cut to so many first
// tokens, so that only blocks beyond them go, and it holds these no more; not with `release`.
struct EvictCommand {
  Incarnation incarnation;  // the worker's life that is meant
  uint64_t intent_version = 0;
  RequestId request;
  PoolIndex pool = 0;
  std::vector<BlockKey> keys;
  SessionId session;
  bool release = false;
  std::optional<uint64_t> keep_tokens;
  uint32_t blocks = 0;
};
// A session was forked: the new one holds what the old one does here, unless it holds something
// already. Idempotent by request id. From version 3 on.
struct ForkCommand {
  Incarnation incarnation;  // the worker's life that is meant
  RequestId request;
  SessionId session;
  SessionId new_session;
};
using ManagerMessage =
    std::variant<Welcome, ResyncRequest, DigestRequest, EvictCommand, ForkCommand>;

}  // namespace kvist::cache_manager

#endif  // KVIST_CACHE_MANAGER_STREAM_MESSAGES_H_
