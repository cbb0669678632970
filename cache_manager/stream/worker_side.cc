#include "cache_manager/stream/worker_side.h"

#include <algorithm>
#include <utility>

#include "cache_manager/limits.h"
#include "cache_manager/stream/validate.h"
#include "common/base/check.h"
#include "common/base/status.h"

namespace kvist::cache_manager {
namespace {

// Block slots, session parts and keys that one slice of a snapshot looks at: well below 1 ms of the
// engine's time at some 100 ns each.
constexpr size_t kSnapshotItemsPerSlice = 2'048;

}  // namespace

WorkerSide::WorkerSide(WorkerInfo info, const Sources& sources)
    : info_(std::move(info)), sources_(sources), heartbeat_interval_ms_(kHeartbeatIntervalMs) {
  KVIST_CHECK(info_.pools.size() == sources.pools.size());
  KVIST_CHECK(sources.sessions != nullptr && sources.log != nullptr);
}

Hello WorkerSide::Connect(int64_t now_ms) {
  Disconnect();
  connected_ = true;
  // Until the manager says otherwise. The first heartbeat comes with the first Poll.
  heartbeat_interval_ms_ = kHeartbeatIntervalMs;
  last_heartbeat_ms_ = now_ms - heartbeat_interval_ms_;
  return {.info = info_, .last_seq = sources_.log->last_seq()};
}

void WorkerSide::Disconnect() {
  connected_ = false;
  snapshot_.reset();
  outcomes_.clear();
}

absl::Status WorkerSide::Receive(const ManagerMessage& message) {
  if (!connected_) return absl::OkStatus();
  if (const auto* welcome = std::get_if<Welcome>(&message)) {
    heartbeat_interval_ms_ =
        std::clamp<int64_t>(welcome->heartbeat_interval_ms, 10, kSuspectAfterMs);
    intent_version_ = std::max(intent_version_, welcome->intent_version);
    return absl::OkStatus();
  }
  if (const auto* request = std::get_if<ResyncRequest>(&message)) {
    resync_id_ = request->resync_id;
    next_chunk_ = 0;
    snapshot_.emplace(
        SnapshotBuilder::Sources{sources_.pools, sources_.sessions, sources_.log, sources_.tiers});
    // The snapshot has what these would tell.
    sources_.log->DropThrough(snapshot_->base_seq());
    return absl::OkStatus();
  }
  if (std::holds_alternative<DigestRequest>(message)) {
    last_heartbeat_ms_.reset();
    return absl::OkStatus();
  }
  const auto* fork = std::get_if<ForkCommand>(&message);
  const auto* evict = std::get_if<EvictCommand>(&message);
  KVIST_RETURN_IF_ERROR(fork != nullptr ? Validate(*fork) : Validate(*evict));
  if (outcomes_.size() >= kMaxCommandsInFlight) {
    return InvalidField("request", "more commands than may be in flight");
  }
  outcomes_.push_back(fork != nullptr ? Execute(*fork) : Execute(*evict));
  return absl::OkStatus();
}

std::optional<CommandOutcome> WorkerSide::Settled(const RequestId& request,
                                                  const Incarnation& incarnation) const {
  if (incarnation != info_.incarnation) {
    return CommandOutcome{.request = request,
                          .result = CommandResult::kRefused,
                          .reason = "meant for another incarnation"};
  }
  const auto known = executed_.find(request);
  if (known == executed_.end()) return std::nullopt;
  return known->second;
}

CommandOutcome WorkerSide::Execute(const ForkCommand& command) {
  if (const auto settled = Settled(command.request, command.incarnation)) return *settled;
  CommandOutcome outcome{.request = command.request};
  if (!sources_.sessions->Fork(command.session, command.new_session)) {
    outcome.result = CommandResult::kRefused;
    outcome.reason = "nothing is held of the one, or something of the other";
  }
  Remember(outcome);
  return outcome;
}

CommandOutcome WorkerSide::Execute(const EvictCommand& command) {
  if (const auto settled = Settled(command.request, command.incarnation)) return *settled;
  CommandOutcome outcome;
  if (command.intent_version < intent_version_) {
    outcome = {.request = command.request,
               .result = CommandResult::kRefused,
               .reason = "made under an older intent"};
  } else {
    intent_version_ = command.intent_version;
    outcome = Evict(command);
  }
  Remember(outcome);
  return outcome;
}

CommandOutcome WorkerSide::Evict(const EvictCommand& command) {
  CommandOutcome outcome{.request = command.request};
  if (!command.session.empty()) {
    EvictSession(command, outcome);
  } else if (command.pool >= sources_.pools.size()) {
    outcome.result = CommandResult::kRefused;
    outcome.reason = "no such pool";
    return outcome;
  } else if (command.blocks > 0) {
    const int32_t wanted = static_cast<int32_t>(std::min(command.blocks, kMaxBlocksPerPool));
    const int32_t evicted =
        sources_.pools[command.pool]->EvictSome(wanted, EvictionCause::kCommand);
    outcome.evicted_blocks = static_cast<uint64_t>(evicted);
    outcome.left_blocks = static_cast<uint64_t>(wanted - evicted);
  } else {
    BlockPool& pool = *sources_.pools[command.pool];
    for (const BlockKey& key : command.keys) {
      EvictFromTiers(command.pool, key, EvictionCause::kCommand);
      if (pool.Evict(key, EvictionCause::kCommand))
        ++outcome.evicted_blocks;
      else if (pool.Contains(key))
        ++outcome.left_blocks;
    }
  }
  if (outcome.left_blocks > 0) outcome.result = CommandResult::kClipped;
  return outcome;
}

// From the tail on, so that only blocks go that nothing continues, and down to what another session
// holds: that one may end there, so that in the pool the block looks like a tail of this one.
// Unnamed tails of answers go behind the same keys. Others stay to be evicted for room, as does the
// tail of a session without a full block, whose root is not known here.
void WorkerSide::EvictSession(const EvictCommand& command, CommandOutcome& outcome) {
  const EvictionCause cause = command.release ? EvictionCause::kClosed : EvictionCause::kCommand;
  const uint32_t kept = KeptBlocks(command);
  for (size_t i = 0; i < sources_.pools.size(); ++i) {
    BlockPool& pool = *sources_.pools[i];
    const PoolIndex index = static_cast<PoolIndex>(i);
    const auto chain = sources_.sessions->Chain(command.session, index);
    const size_t shared = sources_.sessions->SharedBlocks(command.session, index);
    for (size_t k = chain.size(); k-- > kept;) {
      const bool own = k >= shared;
      if (own) pool.EvictPartials(chain[k], cause);
      if (own) EvictFromTiers(index, chain[k], cause);
      if (own && pool.Evict(chain[k], cause)) {
        ++outcome.evicted_blocks;
      } else if (pool.Contains(chain[k])) {
        ++outcome.left_blocks;
      }
    }
  }
  if (command.release) sources_.sessions->Release(command.session);
  if (command.keep_tokens.has_value()) sources_.sessions->Cut(command.session, kept);
}

// Full blocks within the first tokens that the session keeps.
uint32_t WorkerSide::KeptBlocks(const EvictCommand& command) const {
  const auto block_tokens =
      static_cast<uint64_t>(sources_.pools.front()->options().block_tokens);  // the same in all
  return static_cast<uint32_t>(
      std::min<uint64_t>(command.keep_tokens.value_or(0) / block_tokens, kMaxChainBlocks));
}

void WorkerSide::EvictFromTiers(PoolIndex pool, const BlockKey& key, EvictionCause cause) {
  for (const auto& tier : sources_.tiers) {
    if (tier->options().pool == pool) tier->Evict(key, cause);
  }
}

void WorkerSide::Remember(const CommandOutcome& outcome) {
  if (executed_order_.size() == kMaxRememberedCommands) {
    executed_.erase(executed_order_.front());
    executed_order_.pop_front();
  }
  executed_.emplace(outcome.request, outcome);
  executed_order_.push_back(outcome.request);
}

SnapshotChunk WorkerSide::NextChunk() {
  SnapshotBuilder::Slice slice = snapshot_->NextSlice(kSnapshotItemsPerSlice);
  SnapshotChunk chunk{.resync_id = resync_id_,
                      .base_seq = snapshot_->base_seq(),
                      .index = next_chunk_++,
                      .end_seq = slice.end_seq,
                      .events = std::move(slice.events),
                      .last = slice.last};
  if (slice.last) {
    snapshot_.reset();
    last_heartbeat_ms_.reset();  // lets the manager verify the new mirror at once
  }
  return chunk;
}

std::vector<WorkerMessage> WorkerSide::Poll(int64_t now_ms, const WorkerLoad& load,
                                            size_t max_messages) {
  std::vector<WorkerMessage> out;
  if (!connected_) return out;
  while (sources_.log->waiting() > 0 && out.size() < max_messages) {
    EventRun run = sources_.log->TakeBatch();
    out.emplace_back(EventBatch{run.first_seq, std::move(run.events), load});
  }
  // After the events, so that the mirror shows what the outcome says.
  for (; !outcomes_.empty() && out.size() < max_messages; outcomes_.pop_front()) {
    out.emplace_back(std::move(outcomes_.front()));
  }
  if (snapshot_.has_value() && out.size() < max_messages) out.emplace_back(NextChunk());
  const bool due =
      !last_heartbeat_ms_.has_value() || now_ms - *last_heartbeat_ms_ >= heartbeat_interval_ms_;
  if (due && sources_.log->waiting() == 0 && out.size() < max_messages) {
    const auto digests = sources_.log->digests();
    out.emplace_back(Heartbeat{sources_.log->last_seq(), {digests.begin(), digests.end()}, load});
    last_heartbeat_ms_ = now_ms;
  }
  return out;
}

bool WorkerSide::has_more() const {
  return connected_ && (sources_.log->waiting() > 0 || !outcomes_.empty() || snapshot_.has_value());
}

}  // namespace kvist::cache_manager
