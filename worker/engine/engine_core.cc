// Invariants:
//   1. every live request is in the scheduler once, waiting or running, or waits for its leader's
//      prompt; a waiting one holds no blocks
//   2. between steps known_tokens = tokens.size(); stored_tokens = blocks.stored_tokens()
//   3. blocks referenced in the pools = blocks in the tables of the running ones, and those that
//      sessions' copies hold
//   4. unscheduled = live requests without a first schedule
//   5. a follower has a live leader, which lists it and follows nobody
#include "worker/engine/engine_core.h"

#include <algorithm>
#include <string>
#include <utility>

#include "common/base/check.h"
#include "common/base/status.h"

namespace kvist::worker {
namespace {

// Every decode must fit into a step and have a row of logits.
Scheduler::Options SchedulerOptions(const EngineOptions& options, const Backend& backend) {
  const int64_t step = std::min(options.max_step_tokens, backend.max_batch_tokens());
  return {.max_running_sequences = static_cast<int32_t>(
              std::min<int64_t>({options.max_running_sequences, step, backend.max_logit_rows()})),
          .max_step_tokens = step};
}

LiveRequest& LiveOf(Sequence& sequence) { return static_cast<LiveRequest&>(sequence); }
const LiveRequest& LiveOf(const Sequence& sequence) {
  return static_cast<const LiveRequest&>(sequence);
}

}  // namespace

EngineCore::EngineCore(const EngineOptions& options, std::unique_ptr<Backend> backend,
                       const Clock* clock)
    : options_(options),
      backend_(std::move(backend)),
      clock_(clock),
      events_({.num_pools = backend_->pools().size()}),
      sessions_(options.max_sessions, &events_),
      session_holds_(backend_->pools().size(), &sessions_),
      scheduler_(SchedulerOptions(options, *backend_), this),
      speculation_({.most_drafts = options.speculative_tokens,
                    .max_step_tokens = SchedulerOptions(options, *backend_).max_step_tokens,
                    .max_logit_rows = backend_->max_logit_rows(),
                    .max_tokens = backend_->model().context_tokens}),
      chooser_(backend_->model().vocab),
      pace_(options.max_step_seconds) {
  limits_.vocab = backend_->model().vocab;
  limits_.context_tokens = backend_->model().context_tokens;
  MakePools();
  if (options.disk != nullptr) {
    limits_.disk = true;
    offload_ = std::make_unique<Offload>(
        options.disk, Offload::Sources{backend_.get(), &pools_, &events_, clock_});
  }
  memory_ = SumMemory();
}

EngineCore::~EngineCore() { EndAll(Unavailable(ErrorReason::kDraining, "the worker has stopped")); }

void EngineCore::MakePools() {
  const std::vector<LayerGroup>& groups = backend_->model().groups;
  const std::vector<PoolSpec>& specs = backend_->pools();
  KVIST_CHECK(!groups.empty() && !specs.empty() && specs.size() % groups.size() == 0);
  for (size_t first = 0; first < specs.size(); first += groups.size()) {
    std::vector<CacheGroup> cache_groups;
    std::vector<cache_manager::PoolIndex> numbers;
    for (size_t g = 0; g < groups.size(); ++g) {
      const PoolSpec& spec = specs[first + g];
      KVIST_CHECK(spec.group == static_cast<int32_t>(g) && spec.format == specs[first].format);
      numbers.push_back(static_cast<cache_manager::PoolIndex>(first + g));
      pools_.push_back(std::make_unique<cache_manager::BlockPool>(
          cache_manager::BlockPool::Options{.id = numbers.back(),
                                            .num_blocks = spec.num_blocks,
                                            .block_tokens = spec.block_tokens,
                                            .evict_leaves_only = groups[g].window == 0},
          &events_));
      cache_groups.push_back({.pool = pools_.back().get(),
                              .backend_pool = static_cast<int32_t>(first + g),
                              .window = groups[g].window});
    }
    auto copy = [this](int32_t pool, int32_t from, int32_t to) {
      ++stats_.copied_blocks;
      backend_->CopyBlock(pool, from, to);
    };
    formats_.push_back(std::make_unique<FormatCache>(FormatCache{
        KvCache(specs[first].format, std::move(cache_groups), copy), std::move(numbers)}));
    limits_.formats.push_back(&formats_.back()->cache);
  }
}

std::vector<MemoryPart> EngineCore::SumMemory() const {
  // Weights, KV and what a pass works on: as the backend says.
  std::vector<MemoryPart> parts = backend_->memory();
  // States, names and tokens of every block of every pool, whether it is used or not.
  MemoryPart& pools = parts.emplace_back(MemoryPart{"pools", 0});
  for (const auto& pool : pools_) pools.bytes += pool->memory_bytes();
  // Where drafts are looked up: a context of tokens for each of those that draft at once.
  if (const int64_t bytes = speculation_.memory_bytes(); bytes > 0) {
    parts.push_back({"drafts", bytes});
  }
  if (offload_ == nullptr) return parts;
  // Buffers that blocks go through on their way to the disk and back.
  parts.push_back({"offload", options_.disk->memory_bytes()});
  // Names of what each place of the disk holds.
  MemoryPart& tiers = parts.emplace_back(MemoryPart{"tiers", 0});
  for (const auto& tier : offload_->tiers()) tiers.bytes += tier->memory_bytes();
  return parts;
}

void EngineCore::Add(GenerateRequest request, std::shared_ptr<TokenSink> sink,
                     MonotonicTime queued) {
  FormatCache* format = nullptr;
  for (const auto& candidate : formats_) {
    if (candidate->cache.format() == request.cache.kv_format) format = candidate.get();
  }
  KVIST_CHECK(format != nullptr && !live_.contains(request.id));
  const CacheOptions& cache = request.cache;
  const size_t max_tokens =
      request.prompt_ids.size() + static_cast<size_t>(request.stop.max_new_tokens);
  const SequenceBlocksOptions blocks{
      .root = cache_manager::RootKey({.model_fingerprint = backend_->model().fingerprint,
                                      .attention = cache_manager::AttentionText(cache.attention),
                                      .block_tokens = format->cache.block_tokens(),
                                      .tenant_salt = request.tenant_salt}),
      .sharing = cache.allocation == Allocation::kNone ? Sharing::kScratch : Sharing::kShared,
      .attention = cache.attention,
      .max_tokens = static_cast<int64_t>(max_tokens)};
  ++stats_.requests[cache];
  auto owned = std::make_unique<LiveRequest>(std::move(request), std::move(sink), format,
                                             SequenceBlocks(&format->cache, blocks));
  LiveRequest& live = *owned;
  live.tokens.reserve(max_tokens);
  live.tokens = live.request.prompt_ids;
  live.tokens.insert(live.tokens.end(), live.request.generated_ids.begin(),
                     live.request.generated_ids.end());
  if (NeedsCounts(live.request.sampling)) {
    live.counts.AddPrompt(live.request.prompt_ids);
    live.counts.Reserve(static_cast<size_t>(live.request.stop.max_new_tokens));
    for (const int32_t id : live.request.generated_ids) live.counts.AddOutput(id);
  }
  live.known_tokens = static_cast<int64_t>(live.tokens.size());
  live.priority = live.request.priority;
  live.arrival = ++arrivals_;
  live.preemptible = live.request.cache.allocation != Allocation::kStatic;
  live.queued = queued;
  ++unscheduled_;
  live_.emplace(live.request.id, std::move(owned));
  if (!Follow(live)) scheduler_.Add(&live);
  // A replay of an answer that was complete: nothing is left to choose.
  if (const auto reason = ReasonToStop(live)) Finish(live, *reason, absl::OkStatus());
}

void EngineCore::Cancel(const RequestId& id) {
  const auto found = live_.find(id);
  if (found == live_.end()) return;
  Finish(*found->second, FinishReason::kCancelled, absl::CancelledError("cancelled"));
}

void EngineCore::EndAll(const absl::Status& status) {
  while (!live_.empty()) Finish(*live_.begin()->second, FinishReason::kError, status);
}

void EngineCore::FlushOffload(std::chrono::milliseconds most) {
  if (offload_ != nullptr) offload_->Flush(most);
}

bool EngineCore::Step() {
  ExpireDeadlines();
  const bool more = offload_ != nullptr && offload_->Poll();
  scheduler_.Schedule(&plan_, pace_.MostTokens());
  speculation_.AddDrafts(static_cast<int64_t>(scheduler_.running().size()), &plan_);
  stats_.preemptions += static_cast<uint64_t>(plan_.preemptions);
  if (!plan_.chunks.empty()) {
    const MonotonicTime start = clock_->Now();
    const uint64_t prefilled = stats_.prefill_tokens;
    const absl::StatusOr<Logits> logits = backend_->Run(MakeBatch());
    if (logits.ok()) {
      Postprocess(*logits);
    } else {
      FailBatch(logits.status());
    }
    CountStep(static_cast<int64_t>(stats_.prefill_tokens - prefilled),
              SecondsBetween(start, clock_->Now()));
  }
  return more || !plan_.chunks.empty();
}

void EngineCore::ExpireDeadlines() {
  const MonotonicTime now = clock_->Now();
  std::vector<LiveRequest*> expired;
  for (const auto& [id, live] : live_) {
    if (live->request.deadline.has_value() && *live->request.deadline <= now) {
      expired.push_back(live.get());
    }
  }
  for (LiveRequest* live : expired) {
    Finish(*live, FinishReason::kDeadline,
           absl::DeadlineExceededError("the request's deadline passed"));
  }
}

bool EngineCore::Admit(Sequence& sequence, int64_t spare_blocks) {
  LiveRequest& live = LiveOf(sequence);
  if (live.offloads() && offload_->StartRestore(live, spare_blocks)) return false;
  // The newest token is always computed: its logits are wanted.
  const int64_t limit = live.known_tokens - 1;
  live.blocks.MatchBlocks(live.tokens, limit);
  if (!(live.preemptible ? live.blocks.Fits(live.known_tokens, spare_blocks)
                         : live.blocks.Reserve(MostStoredTokens(live.request), spare_blocks))) {
    live.blocks.Discard();
    return false;
  }
  // What comes after the prompt is each sample's own.
  const LiveRequest* sibling = limit <= live.prompt_tokens() ? SiblingOf(live) : nullptr;
  if (sibling == nullptr || live.blocks.MatchPartialOf(sibling->blocks, limit) == 0) {
    live.blocks.MatchPartial(live.tokens, limit);
  }
  live.stored_tokens = live.blocks.stored_tokens();
  if (!live.first_scheduled.has_value()) {
    live.first_scheduled = clock_->Now();
    --unscheduled_;
    live.cached_tokens = std::min(live.stored_tokens, live.prompt_tokens());
    if (live.caches()) {
      stats_.prefix_tokens_asked += static_cast<uint64_t>(live.prompt_tokens());
      stats_.prefix_tokens_hit += static_cast<uint64_t>(live.cached_tokens);
    }
    if (live.in_session()) {
      live.member = {live.request.session, live.request.tenant, &live.format->pools, {}, {}};
      session_holds_.Begin(live.member, live.blocks);
    }
  } else if (live.in_session()) {
    session_holds_.Update(live.member, live.blocks);
  }
  return true;
}

int64_t EngineCore::Grow(Sequence& sequence, int64_t tokens) {
  LiveRequest& live = LiveOf(sequence);
  return std::min(tokens, live.blocks.GrowTo(live.stored_tokens + tokens) - live.stored_tokens);
}

std::optional<Loss> EngineCore::LossOf(const Sequence& victim, const Sequence& needy) const {
  const LiveRequest& live = LiveOf(victim);
  if (live.format != LiveOf(needy).format || live.blocks.table(0).empty()) return std::nullopt;
  const auto on_disk = [&](size_t group, const cache_manager::BlockKey& key) {
    return live.offloads() && offload_->tiers()[live.format->pools[group]]->Contains(key);
  };
  return Loss{.helps = live.blocks.FreesWhatIsShort(),
              .tokens = live.blocks.stored_tokens() - live.blocks.KeptWithout(on_disk)};
}

void EngineCore::Preempt(Sequence& sequence) {
  LiveRequest& live = LiveOf(sequence);
  if (live.offloads()) offload_->WriteBack(live);
  live.restore_tried = false;
  live.blocks.Release(live.tokens);
  live.stored_tokens = 0;
  ++live.preemptions;
  if (live.in_session()) session_holds_.Pause(live.member);
}

const Batch& EngineCore::MakeBatch() {
  std::vector<SequenceSlice>& slices = batch_.slices;
  while (slices.size() > plan_.chunks.size()) {
    spare_tables_.push_back(std::move(slices.back().block_tables));
    slices.pop_back();
  }
  while (slices.size() < plan_.chunks.size()) {
    slices.emplace_back();
    if (spare_tables_.empty()) continue;
    slices.back().block_tables = std::move(spare_tables_.back());
    spare_tables_.pop_back();
  }
  for (size_t i = 0; i < slices.size(); ++i) {
    const ScheduledChunk& chunk = plan_.chunks[i];
    LiveRequest& live = LiveOf(*chunk.sequence);
    SequenceSlice& slice = slices[i];
    slice.tokens =
        std::span<const int32_t>(live.tokens)
            .subspan(static_cast<size_t>(chunk.first_position), static_cast<size_t>(chunk.tokens));
    slice.first_position = chunk.first_position;
    slice.kv_format = live.format->cache.format();
    slice.attention = live.request.cache.attention;
    slice.block_tables.clear();
    for (size_t g = 0; g < live.format->pools.size(); ++g) {
      slice.block_tables.push_back(live.blocks.table(g));
    }
    slice.logits_from = chunk.completes ? chunk.tokens - 1 - chunk.drafts : chunk.tokens;
  }
  return batch_;
}

// The backend says that it changed nothing; the sequences of the batch end, the others go on.
void EngineCore::FailBatch(const absl::Status& status) {
  for (const ScheduledChunk& chunk : plan_.chunks) {
    LiveRequest& live = LiveOf(*chunk.sequence);
    live.blocks.Discard();
    live.stored_tokens = 0;
    Finish(live, FinishReason::kError, status);
  }
}

void EngineCore::Postprocess(const Logits& logits) {
  int64_t row = 0;
  for (const ScheduledChunk& chunk : plan_.chunks) {
    LiveRequest& live = LiveOf(*chunk.sequence);
    AdvanceChunk(chunk, live);
    const Logits rows{.data = logits.row(row),
                      .rows = chunk.completes ? 1 + chunk.drafts : 0,
                      .vocab = logits.vocab,
                      .stride = logits.stride};
    row += rows.rows;
    if (!live.followers.empty() && live.has_prompt()) LetFollowersGo(live, rows);
    if (chunk.completes) TakeTokens(chunk, rows, live);
  }
}

void EngineCore::AdvanceChunk(const ScheduledChunk& chunk, LiveRequest& live) {
  const int64_t tokens = chunk.tokens - chunk.drafts;
  uint64_t& counter =
      live.state == SequenceState::kDecode ? stats_.decode_tokens : stats_.prefill_tokens;
  counter += static_cast<uint64_t>(tokens);
  Store(tokens, live);
  if (!live.first_token.has_value()) {
    live.sink->OnProgress(std::min(live.stored_tokens, live.prompt_tokens()), live.prompt_tokens());
  }
}

void EngineCore::Store(int64_t tokens, LiveRequest& live) {
  live.stored_tokens += tokens;
  live.blocks.MarkWritten(live.tokens, live.stored_tokens);
  if (live.in_session()) session_holds_.Update(live.member, live.blocks);
}

void EngineCore::TakeTokens(const ScheduledChunk& chunk, const Logits& rows, LiveRequest& live) {
  const ChosenTokens chosen = chooser_.Choose(rows, live);
  if (chunk.drafts > 0) {
    speculation_.NoteAccepted(chunk, chosen.accepted);
    stats_.decode_tokens += static_cast<uint64_t>(chosen.rows - 1);
    Store(chosen.rows - 1, live);
  }
  if (!chosen.tokens.empty()) {
    const MonotonicTime now = clock_->Now();
    if (!live.first_token.has_value()) live.first_token = now;
    live.last_token = now;
    live.state = SequenceState::kDecode;
    if (!live.caches()) {
      live.blocks.Discard();
      live.stored_tokens = 0;
      live.state = SequenceState::kPrefill;
    }
    live.sink->OnTokens(chosen.tokens);
  }
  if (!chosen.status.ok()) {
    Finish(live, FinishReason::kError, chosen.status);
  } else if (chosen.reason.has_value()) {
    Finish(live, *chosen.reason, absl::OkStatus());
  }
}

// Takes the request out first: the sink may submit it anew.
void EngineCore::Finish(LiveRequest& live, FinishReason reason, const absl::Status& status) {
  const auto found = live_.find(live.request.id);
  const std::unique_ptr<LiveRequest> owned = std::move(found->second);
  live_.erase(found);
  scheduler_.Remove(&live);
  if (live.offloads()) {
    offload_->Forget(live);
    offload_->WriteBack(live);
  }
  LeaveSiblings(live);
  live.blocks.Release(live.tokens);
  if (live.first_scheduled.has_value()) {
    if (live.in_session()) session_holds_.End(live.member);
  } else {
    --unscheduled_;
  }
  ++stats_.finished[static_cast<size_t>(reason)];
  const MonotonicTime scheduled = live.first_scheduled.value_or(clock_->Now());
  FinishInfo info{.reason = reason,
                  .status = status,
                  .prompt_tokens = live.prompt_tokens(),
                  .cached_tokens = live.cached_tokens,
                  .generated_tokens = live.generated_tokens(),
                  .preemptions = live.preemptions,
                  .draft_tokens = live.draft_tokens,
                  .accepted_tokens = live.accepted_tokens,
                  .queue_seconds = SecondsBetween(live.queued, scheduled)};
  if (live.first_token.has_value()) {
    info.prefill_seconds = SecondsBetween(scheduled, *live.first_token);
    info.decode_seconds = SecondsBetween(*live.first_token, live.last_token);
  }
  if (on_end_) on_end_(live.request.id);
  live.sink->OnFinished(info);
}

void EngineCore::CountStep(int64_t prefill_tokens, double seconds) {
  ++stats_.steps;
  speculation_.NoteStep(seconds);
  pace_.Note(plan_.total_tokens, prefill_tokens, seconds);
  if (offload_ != nullptr) offload_->CountStep(prefill_tokens, plan_.total_tokens, seconds);
  stats_.last_batch_tokens = plan_.total_tokens;
  stats_.last_step_seconds = seconds;
}

EngineState EngineCore::state() {
  EngineState state{pools_, sessions_, events_, load(), copies_, {}};
  if (offload_ != nullptr) state.tiers = offload_->tiers();
  return state;
}

EngineStats EngineCore::stats() const {
  EngineStats stats = stats_;
  if (offload_ != nullptr) stats.offload = offload_->stats();
  stats.speculation = speculation_.stats();
  stats.running = static_cast<int64_t>(scheduler_.running().size());
  stats.waiting = static_cast<int64_t>(scheduler_.waiting().size() + followers_);
  return stats;
}

cache_manager::WorkerLoad EngineCore::load() const {
  cache_manager::WorkerLoad load;
  load.running_sequences = static_cast<uint32_t>(scheduler_.running().size());
  load.waiting_sequences = static_cast<uint32_t>(scheduler_.waiting().size() + followers_);
  load.max_sequences = static_cast<uint32_t>(options_.max_running_sequences);
  for (const auto& [id, live] : live_) {
    if (live->state == SequenceState::kDecode || live->leader != nullptr) continue;
    load.queued_prefill_tokens += static_cast<uint64_t>(live->MissingTokens());
  }
  return load;
}

absl::Status EngineCore::CheckInvariants() const {
  for (size_t i = 0; i < pools_.size(); ++i) {
    const uint64_t on_disk = offload_ == nullptr ? 0 : offload_->tiers()[i]->placement();
    KVIST_RETURN_IF_ERROR(pools_[i]->CheckInvariants(on_disk));
  }
  if (offload_ != nullptr) KVIST_RETURN_IF_ERROR(offload_->CheckInvariants());
  KVIST_RETURN_IF_ERROR(sessions_.CheckInvariants());
  if (scheduler_.running().size() + scheduler_.waiting().size() + followers_ != live_.size()) {
    return absl::InternalError("engine 1: live requests and the scheduler");
  }
  size_t unscheduled = 0, listed = 0;
  for (const auto& [id, live] : live_) {
    KVIST_RETURN_IF_ERROR(live->blocks.CheckInvariants());
    const bool waits = live->state == SequenceState::kWaiting;
    if (waits && !live->blocks.table(0).empty()) {
      return absl::InternalError("engine 1: a waiting request holds blocks");
    }
    if (live->known_tokens != static_cast<int64_t>(live->tokens.size()) ||
        live->stored_tokens != live->blocks.stored_tokens()) {
      return absl::InternalError("engine 2: token counts");
    }
    if (!live->first_scheduled.has_value()) ++unscheduled;
    listed += live->followers.size();
    for (const LiveRequest* follower : live->followers) {
      if (follower->leader != live.get() || live->leader != nullptr) {
        return absl::InternalError("engine 5: followers and leaders");
      }
    }
  }
  if (listed != followers_) return absl::InternalError("engine 5: followers");
  if (unscheduled != unscheduled_) return absl::InternalError("engine 4: unscheduled");
  for (const auto& format : formats_) {
    for (size_t g = 0; g < format->pools.size(); ++g) {
      std::vector<int32_t> held;
      for (const auto& [id, live] : live_) {
        if (live->format != format.get()) continue;
        for (const int32_t block : live->blocks.table(g)) {
          if (block >= 0) held.push_back(block);
        }
      }
      copies_.AddHeld(*format, g, &held);
      std::sort(held.begin(), held.end());
      held.erase(std::unique(held.begin(), held.end()), held.end());
      if (static_cast<int32_t>(held.size()) != pools_[format->pools[g]]->Counts().active) {
        return absl::InternalError("engine 3: referenced blocks");
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace kvist::worker
