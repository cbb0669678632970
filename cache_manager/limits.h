// Every limit of the cache manager's pure side, with its reason. Counts that come from a peer are
// compared with these before anything is allocated for them.
#ifndef KVIST_CACHE_MANAGER_LIMITS_H_
#define KVIST_CACHE_MANAGER_LIMITS_H_

#include <cstddef>
#include <cstdint>

namespace kvist::cache_manager {

// Events that wait for a manager: some seconds of a busy worker. Beyond it a snapshot is cheaper
// than the backlog, so everything waiting is dropped and the manager sees a gap.
inline constexpr size_t kMaxWaitingEvents = 65'536;
// Keys of all holdings among them (a holding has up to kMaxKeysPerEvent): 16 MiB. Beyond it the
// same.
inline constexpr size_t kMaxWaitingKeys = size_t{1} << 20;
// Events of one batch or snapshot chunk: below gRPC's 4 MiB message at about 100 bytes each.
inline constexpr size_t kMaxEventsPerBatch = 4'096;
// Keys of one SessionHolds (16 bytes each); longer chains take several events.
inline constexpr size_t kMaxKeysPerEvent = 4'096;
// Keys of all events of one batch or snapshot chunk: 1 MiB, so that a message stays below gRPC's 4
// MiB.
inline constexpr size_t kMaxKeysPerBatch = 65'536;
// Blocks of one session's chain: a context of 1 Mi tokens in blocks of 16.
inline constexpr size_t kMaxChainBlocks = 65'536;
// Keys in all chains of one worker: 64 MiB. The session table releases old sessions to stay below
// it.
inline constexpr size_t kMaxChainKeysPerWorker = size_t{4} << 20;
// Sessions that one worker remembers.
inline constexpr size_t kMaxSessionsPerWorker = 65'536;
// Pools of one worker: layer groups times formats; the models known have at most 2 groups.
inline constexpr size_t kMaxPoolsPerWorker = 16;
// Blocks of one pool: 16 Mi tokens in blocks of 16.
inline constexpr uint32_t kMaxBlocksPerPool = 1u << 20;
// Bytes of one block: 128 tokens of the largest models known stay below 64 MiB in one layer group.
inline constexpr uint64_t kMaxBytesPerBlock = uint64_t{1} << 28;
// Attention windows are below the longest context.
inline constexpr uint32_t kMaxWindowTokens = 1u << 20;
// Workers of one cell (ARCHITECTURE.md 2).
inline constexpr size_t kMaxWorkers = 1'024;
// Ids of sessions, tenants, workers, requests and turns: a prefix and 32 hex digits, or a name that
// somebody chose.
inline constexpr size_t kMaxIdBytes = 64;
// Model names, addresses.
inline constexpr size_t kMaxNameBytes = 512;
// Reasons in outcomes, canonical attention texts.
inline constexpr size_t kMaxTextBytes = 1'024;
// Children of one parent that FindPartial looks at, newest first: one cache line each, so a few
// microseconds.
inline constexpr int32_t kMaxChildrenLookedAt = 64;
// Keys of one Locate: the longest chain.
inline constexpr size_t kMaxLocateKeys = kMaxChainBlocks;
// Items of one page of a listing.
inline constexpr size_t kMaxPageItems = 1'000;
// Keys of one evict command.
inline constexpr size_t kMaxKeysPerCommand = 4'096;
// Events buffered for one worker while its snapshot is under way; beyond it the snapshot starts
// over.
inline constexpr size_t kMaxBufferedEvents = 4 * kMaxWaitingEvents;
// Keys of all holdings among them: 64 MiB.
inline constexpr size_t kMaxBufferedKeys = 4 * kMaxWaitingKeys;
// Request ids that a worker remembers to recognise repeated commands.
inline constexpr size_t kMaxRememberedCommands = 1'024;
// Incarnations that are remembered as replaced, per worker.
inline constexpr size_t kMaxRememberedIncarnations = 16;
// Commands that wait for their worker or their outcome, per worker.
inline constexpr size_t kMaxCommandsInFlight = 256;

// Timing of the stream (CONTROL_PLANE.md 1). All in milliseconds of one monotonic clock.
inline constexpr int64_t kHeartbeatIntervalMs = 500;
inline constexpr int64_t kSuspectAfterMs = 3'000;
inline constexpr int64_t kLostAfterMs = 10'000;
// A snapshot without progress for this long is asked for again.
inline constexpr int64_t kSnapshotPatienceMs = 5'000;

// Session records.
inline constexpr size_t kMaxSessionTokens = size_t{1} << 20;
// A turn whose frontend vanished keeps its session from others at most a day.
inline constexpr int64_t kMaxTurnLeaseMs = 86'400'000;

}  // namespace kvist::cache_manager

#endif  // KVIST_CACHE_MANAGER_LIMITS_H_
