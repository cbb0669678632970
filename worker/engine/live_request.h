// A request from its admission to the engine's queue until its end: what the loop knows of it.
#ifndef KVIST_WORKER_ENGINE_LIVE_REQUEST_H_
#define KVIST_WORKER_ENGINE_LIVE_REQUEST_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "cache_manager/block_pool.h"
#include "worker/engine/request.h"
#include "worker/engine/session_holds.h"
#include "worker/engine/speculation.h"
#include "worker/kv/block_table.h"
#include "worker/sampling/token_counts.h"
#include "worker/scheduler/sequence.h"

namespace kvist::worker {

// The pools of one KV format as the engine uses them.
struct FormatCache {
  KvCache cache;
  std::vector<cache_manager::PoolIndex> pools;  // by layer group
};

// Owns the sequence's references to blocks. Single-threaded.
struct LiveRequest : Sequence {
  LiveRequest(GenerateRequest r, std::shared_ptr<TokenSink> s, FormatCache* f, SequenceBlocks b)
      : request(std::move(r)), sink(std::move(s)), format(f), blocks(std::move(b)) {}

  int64_t prompt_tokens() const { return static_cast<int64_t>(request.prompt_ids.size()); }
  int64_t generated_tokens() const { return known_tokens - prompt_tokens(); }
  bool caches() const { return request.cache.allocation != Allocation::kNone; }
  bool offloads() const { return request.cache.offload == OffloadTier::kDisk; }
  bool in_session() const { return caches() && !request.session.empty(); }
  bool has_prompt() const { return stored_tokens >= prompt_tokens(); }

  GenerateRequest request;
  std::shared_ptr<TokenSink> sink;
  FormatCache* format;
  SequenceBlocks blocks;
  std::vector<int32_t> tokens;  // prompt and generated: known_tokens; in a step then its drafts
  TokenCounts counts;           // kept only if a penalty reads them
  SessionMember member;         // once scheduled, in a session
  Drafting drafting;
  int64_t draft_tokens = 0;
  int64_t accepted_tokens = 0;  // of these
  // Forks of one prompt (engine_core_forks.cc): who computes it for this one, which waits; and who
  // waits for this one.
  LiveRequest* leader = nullptr;
  std::vector<LiveRequest*> followers;
  int64_t cached_tokens = 0;
  int64_t preemptions = 0;
  bool restore_tried = false;  // since it last gave blocks back
  MonotonicTime queued;
  std::optional<MonotonicTime> first_scheduled;
  std::optional<MonotonicTime> first_token;
  MonotonicTime last_token;
};

}  // namespace kvist::worker

#endif  // KVIST_WORKER_ENGINE_LIVE_REQUEST_H_
