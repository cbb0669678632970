#include "services/worker/engine_metrics.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cache_manager/tier_index.h"
#include "common/base/status.h"
#include "worker/kv/layout.h"
#include "worker/kv/tiers/disk_store.h"

namespace kvist::services {
namespace {

constexpr std::chrono::milliseconds kBlocksInterval{100};

void Raise(prometheus::Counter& counter, uint64_t from, uint64_t to) {
  if (to > from) counter.Increment(static_cast<double>(to - from));
}

}  // namespace

EngineMetrics::EngineMetrics(const worker::Backend& backend, const worker::DiskStore* disk,
                             WorkerMetrics* metrics)
    : metrics_(metrics) {
  AddCacheKinds(backend);
  for (const worker::PoolSpec& pool : backend.pools()) {
    const std::string name =
        absl::StrCat(pool.group, "/", ToAbsl(worker::KvFormatName(pool.format)));
    auto& gauges = blocks_.emplace_back();
    size_t i = 0;
    for (const char* state : {"free", "reserved", "active", "cached", "moving"}) {
      gauges[i++] = &metrics_->blocks.Add(metrics_->BlockLabels(name, state, "device"));
    }
    gauges[0]->Set(pool.num_blocks);
    if (disk == nullptr) continue;
    disk_blocks_.push_back(
        {.cached = &metrics_->blocks.Add(metrics_->BlockLabels(name, "cached", "disk")),
         .free = &metrics_->blocks.Add(metrics_->BlockLabels(name, "free", "disk"))});
  }
}

void EngineMetrics::SetMemory(const std::vector<worker::MemoryPart>& parts) {
  for (const worker::MemoryPart& part : parts) {
    metrics_->memory_bytes.Add({{"worker", metrics_->worker_id}, {"part", part.name}})
        .Set(static_cast<double>(part.bytes));
  }
}

void EngineMetrics::AddCacheKinds(const worker::Backend& backend) {
  static_assert(kAllocations == worker::kNumAllocations && kOffloads == worker::kNumOffloadTiers);
  std::vector<worker::KvFormat> formats;
  for (const worker::PoolSpec& pool : backend.pools()) {
    if (formats.empty() || formats.back() != pool.format) formats.push_back(pool.format);
  }
  for (const worker::KvFormat format : formats) {
    for (size_t a = 0; a < kAllocations; ++a) {
      for (const bool window : {false, true}) {
        for (size_t o = 0; o < kOffloads; ++o) {
          AddCacheKind(
              {.allocation = static_cast<worker::Allocation>(a),
               .attention = {.window_tokens = window ? cache_manager::kLeastWindowTokens : 0},
               .kv_format = format,
               .offload = static_cast<worker::OffloadTier>(o)});
        }
      }
    }
  }
}

void EngineMetrics::AddCacheKind(const worker::CacheOptions& cache) {
  // Nobody can ask for it.
  if (cache.allocation == worker::Allocation::kNone && cache.offload != worker::OffloadTier::kOff) {
    return;
  }
  cache_kinds_.push_back(
      {.cache = cache,
       .requests = &metrics_->cache_requests_total.Add(
           {{"worker", metrics_->worker_id},
            {"allocation", kAllocationLabels[static_cast<size_t>(cache.allocation)]},
            {"attention", kAttentionLabels[cache.attention.window_tokens > 0 ? 1 : 0]},
            {"kv_format", std::string(worker::KvFormatName(*cache.kv_format))},
            {"offload", kOffloadLabels[static_cast<size_t>(cache.offload)]}})});
}

void EngineMetrics::Update(const worker::EngineStats& stats, const worker::EngineState& state,
                           MonotonicTime now) {
  metrics_->num_requests_running.Set(static_cast<double>(stats.running));
  metrics_->num_requests_waiting.Set(static_cast<double>(stats.waiting));
  Raise(metrics_->prefill_tokens_total, last_.prefill_tokens, stats.prefill_tokens);
  Raise(metrics_->decode_tokens_total, last_.decode_tokens, stats.decode_tokens);
  Raise(metrics_->prefix_cache_queries_total, last_.prefix_tokens_asked, stats.prefix_tokens_asked);
  Raise(metrics_->prefix_cache_hits_total, last_.prefix_tokens_hit, stats.prefix_tokens_hit);
  Raise(metrics_->num_preemptions_total, last_.preemptions, stats.preemptions);
  const worker::SpeculationStats& drafts = stats.speculation;
  Raise(metrics_->spec_decode_num_drafts_total, last_.speculation.drafts, drafts.drafts);
  Raise(metrics_->spec_decode_num_draft_tokens_total, last_.speculation.draft_tokens,
        drafts.draft_tokens);
  Raise(metrics_->spec_decode_num_accepted_tokens_total, last_.speculation.accepted_tokens,
        drafts.accepted_tokens);
  Raise(metrics_->forked_requests_total, last_.forks, stats.forks);
  Raise(metrics_->copied_blocks_total, last_.copied_blocks, stats.copied_blocks);
  for (const CacheKind& kind : cache_kinds_) {
    Raise(*kind.requests, last_.requests[kind.cache], stats.requests[kind.cache]);
  }
  if (stats.steps > last_.steps) {
    metrics_->step_seconds.Observe(stats.last_step_seconds);
    metrics_->batch_tokens.Observe(static_cast<double>(stats.last_batch_tokens));
  }
  UpdateOffload(stats.offload);
  last_ = stats;
  std::array<uint64_t, kEvictionCauses> evictions{};
  for (const auto& pool : state.pools) {
    for (size_t i = 0; i < kEvictionCauses; ++i) evictions[i] += pool->evictions()[i];
  }
  for (const auto& tier : state.tiers) {
    for (size_t i = 0; i < kEvictionCauses; ++i) evictions[i] += tier->evictions()[i];
  }
  for (size_t i = 0; i < kEvictionCauses; ++i) {
    Raise(*metrics_->evictions_total[i], last_evictions_[i], evictions[i]);
  }
  last_evictions_ = evictions;
  if (now - last_blocks_ < kBlocksInterval && stats.running > 0) return;
  last_blocks_ = now;
  for (size_t i = 0; i < blocks_.size(); ++i) {
    const cache_manager::PoolCounts counts = state.pools[i]->Counts();
    const int32_t by_state[kStates] = {counts.free, counts.reserved, counts.active, counts.cached,
                                       counts.moving};
    for (size_t s = 0; s < kStates; ++s) blocks_[i][s]->Set(by_state[s]);
    if (disk_blocks_.empty()) continue;
    const cache_manager::TierIndex& tier = *state.tiers[i];
    disk_blocks_[i].cached->Set(tier.stored());
    disk_blocks_[i].free->Set(tier.num_slots() - tier.stored());
  }
}

void EngineMetrics::UpdateOffload(const worker::OffloadStats& stats) {
  const worker::OffloadStats& last = last_.offload;
  Raise(metrics_->offload_written_blocks_total, last.written_blocks, stats.written_blocks);
  Raise(metrics_->offload_written_bytes_total, last.written_bytes, stats.written_bytes);
  Raise(metrics_->offload_restored_blocks_total, last.restored_blocks, stats.restored_blocks);
  Raise(metrics_->offload_restored_bytes_total, last.restored_bytes, stats.restored_bytes);
  Raise(metrics_->offload_restores_total, last.restores, stats.restores);
  Raise(metrics_->offload_recomputes_total, last.recomputes, stats.recomputes);
  Raise(metrics_->offload_wipe_errors_total, last.wipe_errors, stats.wipe_errors);
  const uint64_t from[kOffloadMisses] = {last.damaged_blocks, last.read_errors, last.write_errors,
                                         last.dropped_writes};
  const uint64_t to[kOffloadMisses] = {stats.damaged_blocks, stats.read_errors, stats.write_errors,
                                       stats.dropped_writes};
  for (size_t i = 0; i < kOffloadMisses; ++i) {
    Raise(*metrics_->offload_misses_total[i], from[i], to[i]);
  }
}

}  // namespace kvist::services
