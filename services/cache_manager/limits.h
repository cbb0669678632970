// Limits of the cache-manager role, each with its reason.
#ifndef KVIST_SERVICES_CACHE_MANAGER_LIMITS_H_
#define KVIST_SERVICES_CACHE_MANAGER_LIMITS_H_

#include <chrono>
#include <cstddef>
#include <cstdint>

#include "cache_manager/limits.h"

namespace kvist::services {

// Streams of workers at once: twice the workers of a cell, for those whose old connection still
// hangs.
inline constexpr size_t kMaxWorkerStreams = 2'048;
// Messages that wait behind a write to one worker: every command that may be in flight (all are
// sent anew after a reconnect), the Welcome and some requests for snapshots. One more ends the
// stream.
inline constexpr size_t kMaxQueuedManagerMessages = cache_manager::kMaxCommandsInFlight + 64;
// How long Evict waits for the workers' outcomes: many heartbeats and steps.
inline constexpr std::chrono::milliseconds kEvictPatience{10'000};
// How long Fork, Reset, Truncate, Delete and whoever takes an old name wait for the workers to show
// what the session now holds: a few steps. It is stored before, whatever they do, and its next turn
// settles the books.
inline constexpr std::chrono::milliseconds kSettlePatience{2'000};
// How long a turn may stay open when its frontend does not say: the default deadline of a request
// and a margin.
inline constexpr int64_t kDefaultTurnLeaseMs = 630'000;
inline constexpr int64_t kDefaultTtlSeconds = 7 * 24 * 3600;
inline constexpr int64_t kMaxTtlSeconds = 31'536'000;
inline constexpr int32_t kDefaultPageSize = 100;
inline constexpr int32_t kDefaultBlocksPageSize = 1'000;
inline constexpr int32_t kMaxPageSize = 1'000;
// Liveness of workers and patience with snapshots are looked at this often.
inline constexpr std::chrono::milliseconds kTickInterval{250};
// Metrics that count blocks one by one are brought up to date this often.
inline constexpr int kTicksPerRecount = 20;
// Sessions whose time to live has passed are erased this often, at most so many at once (one
// transaction).
inline constexpr int kTicksPerExpiry = 120;
inline constexpr size_t kMaxExpiredPerRound = 256;
// Sessions of workers that came back are looked up in the store, so many a tick: some milliseconds,
// and half of the commands that may be in flight to a worker.
inline constexpr size_t kMaxSessionChecksPerTick = 128;
// Tries of a compare-and-set that lost to another change of the same session.
inline constexpr int kMaxWriteTries = 4;

}  // namespace kvist::services

#endif  // KVIST_SERVICES_CACHE_MANAGER_LIMITS_H_
