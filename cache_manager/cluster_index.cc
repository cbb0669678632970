#include "cache_manager/cluster_index.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "cache_manager/limits.h"
#include "common/base/int_math.h"
#include "common/base/status.h"

namespace kvist::cache_manager {
namespace {

constexpr uint8_t kNotStored = kNumTiers;

// The fastest tier that has the block; kNotStored if none has.
uint8_t FastestTier(const WorkerMirror& mirror, PoolIndex pool, const BlockKey& key) {
  const auto found = mirror.blocks(pool).find(key);
  if (found == mirror.blocks(pool).end() || !found->second.stored()) return kNotStored;
  return static_cast<uint8_t>(std::countr_zero(found->second.tiers));
}

// Finds the longest usable prefix over the pools of one worker.
class PrefixMatch {
 public:
  PrefixMatch(const WorkerEntry& entry, const LocateQuery& query) : entry_(entry), query_(query) {
    for (size_t i = 0; i < entry.info.pools.size(); ++i) {
      const PoolSpec& spec = entry.info.pools[i];
      if (spec.format != query.format || spec.block_tokens != query.block_tokens) continue;
      served_ = true;
      const AttentionSpan span = SpanInLayers(spec.window_tokens, query.attention);
      const PoolIndex pool = static_cast<PoolIndex>(i);
      if (span.window_tokens == 0) {
        full_.push_back(pool);
      } else {
        windowed_.push_back({.pool = pool,
                             .window_blocks = CeilDiv(span.window_tokens, BlockTokens()),
                             .sink_blocks = CeilDiv(span.sink_tokens, BlockTokens())});
      }
    }
  }

  bool served() const { return served_; }

  void Fill(WorkerMatch& match) {
    for (size_t tier = kNumTiers; tier > 0;) {
      const Prefix prefix = LongestPrefix(static_cast<uint8_t>(tier - 1));
      const auto tokens = static_cast<uint32_t>(prefix.blocks) * query_.block_tokens;
      // Without the tiers that it does not need it is the longest too.
      for (; tier > prefix.slowest; --tier) match.tokens_up_to_tier[tier - 1] = tokens;
    }
    match.matched_tokens = match.tokens_up_to_tier.back();
  }

 private:
  struct Windowed {
    PoolIndex pool = 0;
    int64_t window_blocks = 0;
    int64_t sink_blocks = 0;
  };

  struct Prefix {
    size_t blocks = 0;
    size_t slowest = 0;  // tier that it needs
  };

  // The longest that needs no tier slower than `slowest`.
  Prefix LongestPrefix(uint8_t slowest) {
    slowest_ = slowest;
    matchable_ = query_.keys.size();
    worst_tier_.assign(matchable_, 0);
    for (const PoolIndex pool : full_) CutAtFirstMissing(pool, matchable_);
    for (const Windowed& group : windowed_) {
      CutAtFirstMissing(group.pool, static_cast<size_t>(group.sink_blocks));
    }
    usable_.assign(matchable_ + 1, true);
    tiers_.clear();
    for (const Windowed& group : windowed_) RequireWindow(group);
    Prefix prefix{.blocks = matchable_};
    while (prefix.blocks > 0 && !usable_[prefix.blocks]) --prefix.blocks;
    for (size_t w = 0; w < windowed_.size(); ++w) {
      const size_t window = static_cast<size_t>(windowed_[w].window_blocks);
      for (size_t i = prefix.blocks - std::min(prefix.blocks, window); i < prefix.blocks; ++i) {
        worst_tier_[i] = std::max(worst_tier_[i], tiers_[w][i]);
      }
    }
    for (size_t i = 0; i < prefix.blocks; ++i) {
      prefix.slowest = std::max<size_t>(prefix.slowest, worst_tier_[i]);
    }
    return prefix;
  }

  int64_t BlockTokens() const { return static_cast<int64_t>(query_.block_tokens); }
  // The fastest tier that has the block, of those looked at.
  uint8_t TierOf(PoolIndex pool, const BlockKey& key) const {
    const uint8_t tier = FastestTier(*entry_.mirror, pool, key);
    return tier <= slowest_ ? tier : kNotStored;
  }
  // Of the first `needed` blocks.
  void CutAtFirstMissing(PoolIndex pool, size_t needed) {
    for (size_t i = 0; i < std::min(needed, matchable_); ++i) {
      const uint8_t tier = TierOf(pool, query_.keys[i]);
      if (tier == kNotStored) {
        matchable_ = i;
        return;
      }
      worst_tier_[i] = std::max(worst_tier_[i], tier);
    }
  }
  // A prefix of n blocks is usable if the last min(n, window) of them are there without a hole.
  void RequireWindow(const Windowed& group) {
    const size_t window = static_cast<size_t>(group.window_blocks);
    std::vector<uint8_t>& tiers = tiers_.emplace_back(matchable_);
    size_t run = 0;
    for (size_t i = 0; i < matchable_; ++i) {
      tiers[i] = TierOf(group.pool, query_.keys[i]);
      run = tiers[i] == kNotStored ? 0 : run + 1;
      if (run < std::min(i + 1, window)) usable_[i + 1] = false;
    }
  }

  const WorkerEntry& entry_;
  const LocateQuery& query_;
  bool served_ = false;
  std::vector<PoolIndex> full_;
  std::vector<Windowed> windowed_;
  uint8_t slowest_ = 0;                      // tier that is looked at
  size_t matchable_ = 0;                     // blocks that every full pool has from the start
  std::vector<uint8_t> worst_tier_;          // by block
  std::vector<std::vector<uint8_t>> tiers_;  // by windowed pool and block
  std::vector<bool> usable_;                 // by length in blocks
};

}  // namespace

Confidence WorkerEntry::ConfidenceAt(int64_t now_ms) const {
  if (!has_snapshot) return Confidence::kBlind;
  if (in_resync) return Confidence::kResync;
  const bool overdue = now_ms - told_at_ms > 2 * kHeartbeatIntervalMs;
  return verified && connected && !overdue ? Confidence::kExact : Confidence::kLagging;
}

Liveness WorkerEntry::LivenessAt(int64_t now_ms) const {
  if (refused || LagMs(now_ms) >= kLostAfterMs) return Liveness::kLost;
  return LagMs(now_ms) >= kSuspectAfterMs ? Liveness::kSuspect : Liveness::kAlive;
}

WorkerEntry* ClusterIndex::Put(const WorkerInfo& info, int64_t now_ms) {
  const auto found = workers_.find(info.id);
  if (found != workers_.end() && found->second->info == info) return found->second.get();
  auto entry = std::make_unique<WorkerEntry>();
  entry->info = info;
  entry->mirror = std::make_unique<WorkerMirror>(info);
  entry->last_heard_ms = now_ms;
  std::unique_ptr<WorkerEntry>& place = workers_[info.id];
  place = std::move(entry);
  return place.get();
}

WorkerEntry* ClusterIndex::Find(const WorkerId& id) {
  const auto found = workers_.find(id);
  return found == workers_.end() ? nullptr : found->second.get();
}

const WorkerEntry* ClusterIndex::Find(const WorkerId& id) const {
  const auto found = workers_.find(id);
  return found == workers_.end() ? nullptr : found->second.get();
}

void ClusterIndex::Remove(const WorkerId& id) { workers_.erase(id); }

std::vector<const WorkerEntry*> ClusterIndex::Workers() const {
  std::vector<const WorkerEntry*> all;
  all.reserve(workers_.size());
  for (const auto& [id, entry] : workers_) all.push_back(entry.get());
  std::sort(all.begin(), all.end(),
            [](const auto* a, const auto* b) { return a->info.id < b->info.id; });
  return all;
}

absl::StatusOr<std::vector<WorkerMatch>> ClusterIndex::Locate(const LocateQuery& query,
                                                              int64_t now_ms) const {
  if (query.keys.size() > kMaxLocateKeys) return InvalidField("keys", "too many");
  if (query.block_tokens == 0) return InvalidField("block_tokens", "must be positive");
  std::vector<WorkerMatch> matches;
  for (const WorkerEntry* entry : Workers()) {
    if (entry->info.model_fingerprint != query.model_fingerprint) continue;
    const Liveness liveness = entry->LivenessAt(now_ms);
    PrefixMatch prefix(*entry, query);
    if (liveness == Liveness::kLost || !prefix.served()) continue;
    WorkerMatch match;
    match.worker = entry->info.id;
    match.confidence = entry->ConfidenceAt(now_ms);
    match.liveness = liveness;
    match.lag_ms = entry->LagMs(now_ms);
    match.load = entry->load;
    match.load_age_ms = now_ms - entry->load_at_ms;
    prefix.Fill(match);
    matches.push_back(std::move(match));
  }
  return matches;
}

}  // namespace kvist::cache_manager
