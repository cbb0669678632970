// Invariants:
//   1. every buffer is free, or with one job: writes, reads of restores
//   2. a restore that is not through has its sequence waiting (LiveRequest::restoring), or none
//   3. unwritten_ has what waits to be written and what is being written, each once
//   4. each tier's index holds its own invariants
// A block that was read enters its pool as a cached one: nobody waits with blocks in hand, so
// restores cannot starve running sequences. Under pressure it may be evicted again before its
// sequence is admitted; then that part is computed.
#include "worker/engine/offload.h"

#include <algorithm>
#include <string>
#include <utility>

#include "common/base/check.h"
#include "common/base/logging.h"
#include "common/base/status.h"

namespace kvist::worker {
namespace {

using cache_manager::BlockRef;
using cache_manager::EvictionCause;
using cache_manager::TierIndex;

// Writes take at most so many buffers: a restore finds others free.
constexpr int32_t kWriteBuffers = kStagingBuffers / 2;
// Wipes that the disk has at once: the reads of a restore come behind them.
constexpr size_t kMaxWipes = 8;
// Those whose blocks are gone by their turn are many at once, and a step waits meanwhile.
constexpr size_t kMaxWritesAtOnce = 64;
// A rate of a busy moment should not last: weight of the newest sample.
constexpr double kNewestShare = 0.25;
// Chunks that say something about the speed of prefill.
constexpr int64_t kMeasuredPrefillTokens = 16;
// Of restores that look dearer than computing, one in so many is done to measure the disk again.
constexpr uint64_t kMeasureEvery = 16;
constexpr std::chrono::seconds kTellInterval{60};

void Average(double& rate, double sample) {
  rate = rate == 0 ? sample : rate + kNewestShare * (sample - rate);
}

}  // namespace

absl::StatusOr<std::shared_ptr<DiskStore>> OpenDiskStore(const DiskStoreOptions& options,
                                                         const Backend& backend) {
  const std::string numerics = backend.numerics_id();
  std::vector<BlockFileScope> scopes;
  for (const PoolSpec& pool : backend.pools()) {
    scopes.push_back({.model_fingerprint = backend.model().fingerprint,
                      .numerics_id = numerics,
                      .group = pool.group,
                      .format = pool.format,
                      .block_tokens = pool.block_tokens,
                      .block_bytes = pool.block_bytes});
  }
  KVIST_ASSIGN_OR_RETURN(std::unique_ptr<DiskStore> store, DiskStore::Open(options, scopes));
  return std::shared_ptr<DiskStore>(std::move(store));
}

bool RestoreIsCheaper(const RestoreRates& rates, int64_t bytes, int64_t tokens) {
  if (rates.bytes_per_second <= 0 || rates.tokens_per_second <= 0) return true;
  return static_cast<double>(bytes) / rates.bytes_per_second <=
         static_cast<double>(tokens) / rates.tokens_per_second;
}

Offload::Offload(std::shared_ptr<DiskStore> store, const Sources& sources)
    : store_(std::move(store)), sources_(sources) {
  KVIST_CHECK(store_->num_pools() == sources.pools->size());
  for (size_t pool = 0; pool < store_->num_pools(); ++pool) {
    tiers_.push_back(
        std::make_unique<TierIndex>(TierIndex::Options{.pool = (*sources.pools)[pool]->options().id,
                                                       .num_slots = store_->slots()},
                                    store_->found(pool), sources.events));
  }
  for (int32_t buffer = 0; buffer < kStagingBuffers; ++buffer) free_buffers_.push_back(buffer);
  done_.reserve(2 * kStagingBuffers);
}

// From the tail on: that is what the pools evict first. So in the tier the heads, without which
// nothing behind them is of use, are the last to go.
void Offload::WriteBack(const LiveRequest& live) {
  const auto named = live.blocks.named();
  for (size_t b = named.size(); b-- > 0;) {
    for (size_t g = 0; g < live.format->pools.size(); ++g) {
      const size_t pool = live.format->pools[g];
      if (live.blocks.table(g)[b] < 0 || unwritten_.contains({pool, named[b]})) continue;
      if (tiers_[pool]->Find(named[b]).has_value()) continue;
      if (waiting_.size() == kMaxWaitingWrites) {
        ++stats_.dropped_writes;
        continue;
      }
      waiting_.push_back({pool, named[b]});
      unwritten_.insert(waiting_.back());
    }
  }
}

bool Offload::StartRestore(LiveRequest& live, int64_t spare) {
  if (live.restore_tried) return false;
  std::vector<SequenceBlocks::AbsentBlock> absent;
  const std::vector<cache_manager::PoolIndex>& pools = live.format->pools;
  const int64_t limit = live.known_tokens - 1;
  const int64_t most = live.blocks.MatchWith(
      live.tokens, limit,
      [&](size_t group, const cache_manager::BlockKey& key) {
        return tiers_[pools[group]]->Contains(key);
      },
      &absent);
  if (absent.empty() || !live.blocks.Fits(live.known_tokens, spare)) return false;
  live.restore_tried = true;
  // Counts as a use: what is there should stay until the rest has come.
  const int64_t gain = most - live.blocks.MatchBlocks(live.tokens, limit);
  live.blocks.Discard();
  int64_t bytes = 0;
  Restore restore{.tag = ++restores_begun_, .live = &live};
  for (const auto& block : absent) {
    restore.blocks.push_back({pools[block.group], block.key});
    bytes += static_cast<int64_t>(store_->records(pools[block.group]).record_bytes());
  }
  if (gain <= 0) return false;
  if (!RestoreIsCheaper(rates_, bytes, gain) && ++declined_ % kMeasureEvery != 0) {
    ++stats_.recomputes;
    return false;
  }
  ++stats_.restores;
  live.restoring = true;
  restores_.push_back(std::move(restore));
  PumpReads();
  return true;
}

void Offload::Forget(LiveRequest& live) {
  for (Restore& restore : restores_) {
    if (restore.live != &live) continue;
    restore.live = nullptr;
    restore.abandoned = true;
  }
  live.restoring = false;
}

bool Offload::Poll() {
  store_->TakeDone(&done_);
  for (DiskDone& done : done_) EndJob(done);
  done_.clear();
  PumpWipes();
  if (!restores_.empty()) {
    PumpReads();
    EndRestoresThatAreThrough();
  }
  return PumpWrites();
}

void Offload::EndJob(DiskDone& done) {
  const DiskJob& job = done.job;
  if (!done.status.ok() && job.kind != DiskJob::Kind::kRead) Tell(job, done.status);
  switch (job.kind) {
    case DiskJob::Kind::kWipe:
      --wiping_;
      if (!done.status.ok()) ++stats_.wipe_errors;
      return;
    case DiskJob::Kind::kWrite:
      --writing_;
      unwritten_.erase({job.pool, job.entry.key});
      if (done.status.ok()) {
        tiers_[job.pool]->Finish(job.slot);
        ++stats_.written_blocks;
        stats_.written_bytes += store_->records(job.pool).record_bytes();
      } else {
        tiers_[job.pool]->Abandon(job.slot);
        ++stats_.write_errors;
      }
      break;
    case DiskJob::Kind::kRead:
      EndRead(done);
      break;
  }
  free_buffers_.push_back(job.buffer);
}

void Offload::EndRead(DiskDone& done) {
  const auto restore = std::find_if(restores_.begin(), restores_.end(),
                                    [&](const Restore& r) { return r.tag == done.job.tag; });
  --restore->reading;
  const auto stored = tiers_[done.job.pool]->At(done.job.slot);
  // The slot's block was dropped meanwhile: what was read is nobody's any more.
  if (!stored.has_value() && done.status.ok()) {
    restore->abandoned = true;
    return;
  }
  // What the record calls itself is not to be believed.
  if (done.status.ok() && done.job.entry.key != stored->key) {
    done.status = absl::DataLossError("the record is of another block");
  }
  if (!done.status.ok()) {
    Tell(done.job, done.status);
    const bool damaged = absl::IsDataLoss(done.status) || absl::IsInvalidArgument(done.status);
    ++(damaged ? stats_.damaged_blocks : stats_.read_errors);
    if (stored.has_value()) tiers_[done.job.pool]->Evict(stored->key, EvictionCause::kCapacity);
    restore->abandoned = true;
    return;
  }
  const size_t bytes = store_->records(done.job.pool).record_bytes();
  if (done.seconds > 0) {
    Average(rates_.bytes_per_second, static_cast<double>(bytes) / done.seconds);
  }
  if (!PutIntoPool(done.job)) {
    restore->abandoned = true;
    return;
  }
  ++stats_.restored_blocks;
  stats_.restored_bytes += bytes;
}

bool Offload::PutIntoPool(const DiskJob& job) {
  const BlockFileEntry& entry = job.entry;
  cache_manager::BlockPool& pool = *(*sources_.pools)[job.pool];
  if (pool.Contains(entry.key)) return true;
  absl::StatusOr<BlockRef> block = pool.Allocate();
  if (!block.ok()) return false;
  const std::span<const std::byte> record = store_->Record(job.buffer, job.pool);
  sources_.backend->WriteBlock(static_cast<int32_t>(job.pool), block->index(),
                               store_->records(job.pool).BlockOf(record));
  pool.Commit(*std::move(block), entry.parent, entry.key, entry.tokens).Reset();
  return true;
}

void Offload::PumpWipes() {
  for (size_t pool = 0; pool < tiers_.size(); ++pool) {
    while (wiping_ < kMaxWipes) {
      const std::optional<int32_t> slot = tiers_[pool]->TakeWipe();
      if (!slot.has_value()) break;
      store_->Submit({.kind = DiskJob::Kind::kWipe, .pool = pool, .slot = *slot});
      ++wiping_;
    }
  }
}

void Offload::PumpReads() {
  for (Restore& restore : restores_) {
    while (!restore.abandoned && restore.next < restore.blocks.size() && !free_buffers_.empty()) {
      const Place& block = restore.blocks[restore.next++];
      const std::optional<int32_t> slot = tiers_[block.pool]->Find(block.key);
      if (!slot.has_value()) {
        restore.abandoned = true;
        break;
      }
      store_->Submit({.kind = DiskJob::Kind::kRead,
                      .pool = block.pool,
                      .slot = *slot,
                      .buffer = free_buffers_.back(),
                      .tag = restore.tag});
      free_buffers_.pop_back();
      ++restore.reading;
    }
  }
}

bool Offload::PumpWrites() {
  size_t looked_at = 0;
  while (!waiting_.empty() && writing_ < kWriteBuffers && !free_buffers_.empty()) {
    if (looked_at++ == kMaxWritesAtOnce) return true;
    const Place write = waiting_.front();
    waiting_.pop_front();
    const BlockRef block = (*sources_.pools)[write.pool]->Find(write.key);
    if (block.empty()) {
      unwritten_.erase(write);
      ++stats_.dropped_writes;
      continue;
    }
    const cache_manager::BlockPool& pool = *(*sources_.pools)[write.pool];
    const cache_manager::BlockFacts facts = pool.Facts(block.index());
    const std::optional<int32_t> slot = tiers_[write.pool]->Begin({write.key, facts.parent});
    if (!slot.has_value()) {
      unwritten_.erase(write);
      continue;
    }
    const auto tokens = pool.Tokens(block.index());
    DiskJob job{
        .kind = DiskJob::Kind::kWrite,
        .pool = write.pool,
        .slot = *slot,
        .buffer = free_buffers_.back(),
        .entry = {
            .key = write.key, .parent = facts.parent, .tokens = {tokens.begin(), tokens.end()}}};
    free_buffers_.pop_back();
    ++writing_;
    sources_.backend->ReadBlock(
        static_cast<int32_t>(write.pool), block.index(),
        store_->records(write.pool).BlockOf(store_->Record(job.buffer, write.pool)));
    store_->Submit(std::move(job));
  }
  return false;
}

void Offload::EndRestoresThatAreThrough() {
  std::erase_if(restores_, [](const Restore& restore) {
    const bool asked = restore.abandoned || restore.next == restore.blocks.size();
    if (!asked || restore.reading > 0) return false;
    if (restore.live != nullptr) restore.live->restoring = false;
    return true;
  });
}

void Offload::CountStep(int64_t prefill_tokens, int64_t tokens, double seconds) {
  if (prefill_tokens < kMeasuredPrefillTokens || seconds <= 0) return;
  Average(rates_.tokens_per_second, static_cast<double>(tokens) / seconds);
}

void Offload::Flush(std::chrono::milliseconds most) {
  const auto deadline = std::chrono::steady_clock::now() + most;
  bool more = Poll();
  while (!waiting_.empty() || writing_ > 0 || wiping_ > 0) {
    if (!more && !store_->WaitForDone(deadline)) return;
    more = Poll();
  }
}

void Offload::Tell(const DiskJob& job, const absl::Status& status) {
  const MonotonicTime now = sources_.clock->Now();
  if (told_ && now - told_at_ < kTellInterval) {
    ++untold_;
    return;
  }
  const char* const what = job.kind == DiskJob::Kind::kRead    ? "read"
                           : job.kind == DiskJob::Kind::kWrite ? "written"
                                                               : "wiped";
  LogWarning("a block could not be {} (pool {}, slot {}; {} like it since the last line): {}", what,
             job.pool, job.slot, untold_, std::string(status.message()));
  told_ = true;
  told_at_ = now;
  untold_ = 0;
}

absl::Status Offload::CheckInvariants() const {
  size_t reading = 0;
  for (const Restore& restore : restores_) {
    reading += restore.reading;
    if (restore.live != nullptr && !restore.live->restoring) {
      return absl::InternalError("offload 2: a restore whose sequence does not wait");
    }
  }
  if (free_buffers_.size() + static_cast<size_t>(writing_) + reading != size_t{kStagingBuffers}) {
    return absl::InternalError("offload 1: buffers");
  }
  if (unwritten_.size() != waiting_.size() + static_cast<size_t>(writing_)) {
    return absl::InternalError("offload 3: blocks to be written");
  }
  for (const auto& tier : tiers_) KVIST_RETURN_IF_ERROR(tier->CheckInvariants());
  return absl::OkStatus();
}

}  // namespace kvist::worker
