// All workers' mirrors in one place, and the lookup over them.
#ifndef KVIST_CACHE_MANAGER_CLUSTER_INDEX_H_
#define KVIST_CACHE_MANAGER_CLUSTER_INDEX_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "cache_manager/attention_span.h"
#include "cache_manager/worker_info.h"
#include "cache_manager/worker_mirror.h"

namespace kvist::cache_manager {

// How far a mirror can be believed. exact: its digests were equal at the last heartbeat. lagging:
// not verified since it was made or its connection came back, or the heartbeat is overdue. resync:
// it drifted or lost events, and a snapshot is under way; until then the old picture stands. blind:
// there was no snapshot yet, so an empty mirror does not mean an empty worker.
enum class Confidence : uint8_t { kExact, kLagging, kResync, kBlind };
// suspect: silent for kSuspectAfterMs, no new sessions. lost: silent for kLostAfterMs, or its
// connection was refused.
enum class Liveness : uint8_t { kAlive, kSuspect, kLost };

// One worker as the manager knows it. Times are milliseconds of the manager's monotonic clock.
struct WorkerEntry {
  WorkerInfo info;
  std::unique_ptr<WorkerMirror> mirror;  // never null
  bool has_snapshot = false;             // the mirror was whole once
  bool in_resync = false;
  bool verified = false;  // digests were equal since the last doubt
  bool refused = false;   // its address refuses connections
  bool connected = false;
  int64_t last_heard_ms = 0;
  int64_t told_at_ms = 0;  // heard of its pools; while its engine is in a step it is only heard
  uint64_t last_seq = 0;   // newest event that the mirror has
  WorkerLoad load;
  int64_t load_at_ms = 0;
  uint64_t resyncs = 0;  // since this manager started
  uint64_t drifts = 0;   // of them, found by digests or contradictions

  Confidence ConfidenceAt(int64_t now_ms) const;
  Liveness LivenessAt(int64_t now_ms) const;
  // Milliseconds since the worker was last heard.
  int64_t LagMs(int64_t now_ms) const { return now_ms - last_heard_ms; }
};

// What to look up: the keys of a sequence's full blocks, for one model in one KV format.
struct LocateQuery {
  std::string_view model_fingerprint;
  AttentionSpan attention;  // the keys' own, which says what blocks a prefix needs
  std::string_view format;
  uint32_t block_tokens = 0;
  std::span<const BlockKey> keys;
};

// What one worker has of a sequence.
struct WorkerMatch {
  WorkerId worker;
  uint32_t matched_tokens = 0;  // in whatever tiers
  // The longest prefix that needs no tier slower than this one. The last is matched_tokens.
  std::array<uint32_t, kNumTiers> tokens_up_to_tier{};
  Confidence confidence = Confidence::kBlind;
  Liveness liveness = Liveness::kAlive;
  int64_t lag_ms = 0;
  WorkerLoad load;
  int64_t load_age_ms = 0;
};

// Owns the entries. Single-threaded.
class ClusterIndex {
 public:
  // The entry of that worker, made anew (blind, heard now) unless `info` is what it had.
  WorkerEntry* Put(const WorkerInfo& info, int64_t now_ms);
  // nullptr if unknown. Valid until that worker's next Put or Remove.
  WorkerEntry* Find(const WorkerId& id);
  const WorkerEntry* Find(const WorkerId& id) const;
  void Remove(const WorkerId& id);

  // In the order of worker ids.
  std::vector<const WorkerEntry*> Workers() const;

  // What each worker of that model, format and block size has, lost ones left out, in the order of
  // ids. The longest prefix of L tokens counts for which full-attention pools hold all blocks and
  // windowed ones those of the sinks and of the last min(L, window) tokens. INVALID_ARGUMENT beyond
  // kMaxLocateKeys. O(workers x keys x pools).
  absl::StatusOr<std::vector<WorkerMatch>> Locate(const LocateQuery& query, int64_t now_ms) const;

 private:
  absl::flat_hash_map<WorkerId, std::unique_ptr<WorkerEntry>> workers_;
};

}  // namespace kvist::cache_manager

#endif  // KVIST_CACHE_MANAGER_CLUSTER_INDEX_H_
