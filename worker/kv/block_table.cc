// Invariants of SequenceBlocks:
//   1. every group's table has the same length, and covers at least the stored tokens
//   2. table[b] is the index of refs[b], or -1 where refs[b] is empty
//   3. a full group holds every block; a windowed one its sinks and every block from its first
//      needed one on
//   4. named blocks are full, stored ones: named <= stored / block_tokens; a scratch sequence names
//      none
//   5. keys are known for all named blocks
//   6. a promise is at least what is set aside and held under it
//   7. whoever has a promise shares no partial block
#include "worker/kv/block_table.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/status/status.h"
#include "common/base/check.h"
#include "common/base/int_math.h"

namespace kvist::worker {

using cache_manager::AttentionSpan;
using cache_manager::BlockKey;
using cache_manager::BlockPool;
using cache_manager::BlockRef;
using cache_manager::PartialMatch;

KvCache::KvCache(KvFormat format, std::vector<CacheGroup> groups, CopyBlock copy_block)
    : format_(format), groups_(std::move(groups)), copy_block_(std::move(copy_block)) {
  KVIST_CHECK(!groups_.empty());
  block_tokens_ = groups_[0].pool->options().block_tokens;
  for (const CacheGroup& group : groups_) {
    KVIST_CHECK(group.pool->options().block_tokens == block_tokens_);
  }
}

int64_t KvCache::SinkBlocks(const AttentionSpan& span) const {
  return CeilDiv<int64_t>(span.sink_tokens, block_tokens_);
}

int64_t KvCache::FirstNeeded(const AttentionSpan& span, int64_t stored) const {
  if (span.window_tokens == 0 || stored <= span.window_tokens) return 0;
  return std::max(SinkBlocks(span), (stored - span.window_tokens) / block_tokens_);
}

int64_t KvCache::MostHeld(const AttentionSpan& span, int64_t total) const {
  // Written so that no sum overflows: a capacity without limit may be asked for.
  const int64_t blocks = total / block_tokens_ + (total % block_tokens_ != 0);
  if (span.window_tokens == 0) return blocks;
  // The sinks, the window and one token more, starting at the end of a block.
  return std::min(blocks,
                  SinkBlocks(span) + CeilDiv<int64_t>(span.window_tokens, block_tokens_) + 1);
}

int64_t KvCache::TokensWithin(const AttentionSpan& attention,
                              int32_t (*blocks_of)(const BlockPool& pool)) const {
  constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();
  int64_t tokens = kNoLimit;
  for (const CacheGroup& group : groups_) {
    const int64_t blocks = blocks_of(*group.pool);
    const AttentionSpan span = cache_manager::SpanInLayers(group.window, attention);
    if (blocks < MostHeld(span, kNoLimit)) tokens = std::min(tokens, blocks * block_tokens_);
  }
  return tokens;
}

int64_t KvCache::CapacityTokens(const AttentionSpan& attention) const {
  return TokensWithin(attention, [](const BlockPool& pool) { return pool.options().num_blocks; });
}

int64_t KvCache::PromisableTokens(const AttentionSpan& attention) const {
  return TokensWithin(attention, [](const BlockPool& pool) { return pool.MaxPromised(); });
}

SequenceBlocks::SequenceBlocks(KvCache* cache, const SequenceBlocksOptions& options)
    : cache_(cache),
      root_(options.root),
      sharing_(options.sharing),
      groups_(cache->groups_.size()) {
  const size_t blocks =
      static_cast<size_t>(CeilDiv<int64_t>(options.max_tokens, cache->block_tokens_));
  for (size_t g = 0; g < groups_.size(); ++g) {
    Group& group = groups_[g];
    group.refs.reserve(blocks);
    group.table.reserve(blocks);
    group.span = cache_manager::SpanInLayers(cache->groups_[g].window, options.attention);
    group.sink_blocks = cache->SinkBlocks(group.span);
  }
  if (sharing_ == Sharing::kShared) keys_.reserve(blocks);
}

void SequenceBlocks::ComputeKeys(std::span<const int32_t> tokens, int64_t blocks) {
  const size_t block_tokens = static_cast<size_t>(cache_->block_tokens_);
  for (size_t b = keys_.size(); b < static_cast<size_t>(blocks); ++b) {
    keys_.push_back(cache_manager::ChildKey(ParentOf(static_cast<int64_t>(b)),
                                            tokens.subspan(b * block_tokens, block_tokens)));
  }
}

const BlockKey& SequenceBlocks::ParentOf(int64_t block) const {
  return block == 0 ? root_ : keys_[static_cast<size_t>(block - 1)];
}

void SequenceBlocks::Append(size_t group, BlockRef ref) {
  groups_[group].table.push_back(ref.empty() ? -1 : ref.index());
  groups_[group].refs.push_back(std::move(ref));
}

bool SequenceBlocks::InPool(size_t group, int64_t block) const {
  return cache_->groups_[group].pool->Contains(keys_[static_cast<size_t>(block)]);
}

int64_t SequenceBlocks::LongestMatch(
    int64_t blocks, absl::FunctionRef<bool(size_t group, int64_t block)> present) const {
  int64_t longest = blocks;
  for (size_t g = 0; g < groups_.size(); ++g) {
    const bool full = groups_[g].span.window_tokens == 0;
    const int64_t needed = full ? longest : std::min(longest, groups_[g].sink_blocks);
    int64_t found = 0;
    while (found < needed && present(g, found)) ++found;
    if (found < needed) longest = found;
  }
  // Windowed groups: shorten until every one has the last window. A block that is missing in a
  // group rules out all lengths whose window holds it, down to those that end before it.
  for (bool changed = true; changed && longest > 0;) {
    changed = false;
    for (size_t g = 0; g < groups_.size(); ++g) {
      if (groups_[g].span.window_tokens == 0) continue;
      const int64_t first = cache_->FirstNeeded(groups_[g].span, longest * cache_->block_tokens_);
      int64_t block = longest - 1;
      while (block >= first && present(g, block)) --block;
      if (block < first) continue;
      longest = block;
      changed = true;
    }
  }
  return longest;
}

int64_t SequenceBlocks::MatchBlocks(std::span<const int32_t> tokens, int64_t limit) {
  KVIST_CHECK(stored_ == 0 && groups_[0].table.empty());
  if (sharing_ == Sharing::kScratch) return 0;
  const int64_t blocks = limit / cache_->block_tokens_;
  ComputeKeys(tokens, blocks);
  const int64_t longest =
      LongestMatch(blocks, [this](size_t group, int64_t block) { return InPool(group, block); });
  for (size_t g = 0; g < groups_.size(); ++g) {
    Group& group = groups_[g];
    group.first_held = cache_->FirstNeeded(group.span, longest * cache_->block_tokens_);
    for (int64_t b = 0; b < longest; ++b) {
      Append(g, group.Holds(b) ? cache_->groups_[g].pool->Find(keys_[static_cast<size_t>(b)])
                               : BlockRef());
    }
  }
  named_ = longest;
  stored_ = longest * cache_->block_tokens_;
  return stored_;
}

int64_t SequenceBlocks::MatchWith(
    std::span<const int32_t> tokens, int64_t limit,
    absl::FunctionRef<bool(size_t group, const BlockKey& key)> elsewhere,
    std::vector<AbsentBlock>* absent) {
  KVIST_CHECK(stored_ == 0 && groups_[0].table.empty());
  absent->clear();
  if (sharing_ == Sharing::kScratch) return 0;
  const int64_t blocks = limit / cache_->block_tokens_;
  ComputeKeys(tokens, blocks);
  const int64_t longest = LongestMatch(blocks, [&](size_t group, int64_t block) {
    return InPool(group, block) || elsewhere(group, keys_[static_cast<size_t>(block)]);
  });
  for (int64_t b = 0; b < longest; ++b) {
    for (size_t g = 0; g < groups_.size(); ++g) {
      const int64_t first = cache_->FirstNeeded(groups_[g].span, longest * cache_->block_tokens_);
      if ((b < groups_[g].sink_blocks || b >= first) && !InPool(g, b)) {
        absent->push_back({g, keys_[static_cast<size_t>(b)]});
      }
    }
  }
  return longest * cache_->block_tokens_;
}

int64_t SequenceBlocks::MatchPartial(std::span<const int32_t> tokens, int64_t limit) {
  if (sharing_ == Sharing::kScratch || limit <= stored_) return 0;
  KVIST_CHECK(stored_ == named_ * cache_->block_tokens_);
  const int64_t most = std::min<int64_t>(limit - stored_, cache_->block_tokens_ - 1);
  const auto next = tokens.subspan(static_cast<size_t>(stored_), static_cast<size_t>(most));
  int64_t matched = most;
  std::vector<PartialMatch> matches;
  std::vector<int32_t> from;
  for (size_t g = 0; g < groups_.size(); ++g) {
    matches.push_back(cache_->groups_[g].pool->FindPartial(ParentOf(named_), next));
    matched = std::min<int64_t>(matched, matches.back().matched_tokens);
    if (matched <= 0) return 0;
    from.push_back(matches.back().block.index());
  }
  if (!AppendCopies(from)) return 0;
  stored_ += matched;
  return matched;
}

int64_t SequenceBlocks::MatchPartialOf(const SequenceBlocks& other, int64_t limit) {
  KVIST_CHECK(stored_ == named_ * cache_->block_tokens_ || sharing_ == Sharing::kScratch);
  const int64_t most = std::min<int64_t>(limit - stored_, cache_->block_tokens_ - 1);
  const int64_t matched = std::min(most, other.stored_ - stored_);
  if (sharing_ == Sharing::kScratch || matched <= 0) return 0;
  const size_t block = static_cast<size_t>(named_);
  std::vector<int32_t> from;
  for (const Group& group : other.groups_) {
    if (group.table[block] < 0) return 0;
    from.push_back(group.table[block]);
  }
  if (!AppendCopies(from)) return 0;
  stored_ += matched;
  return matched;
}

bool SequenceBlocks::AppendCopies(std::span<const int32_t> from) {
  std::vector<BlockRef> copies;
  for (size_t g = 0; g < groups_.size(); ++g) {
    absl::StatusOr<BlockRef> copy = cache_->groups_[g].pool->Allocate(&groups_[g].reservation);
    if (!copy.ok()) return false;
    copies.push_back(std::move(copy).value());
  }
  for (size_t g = 0; g < groups_.size(); ++g) {
    cache_->copy_block_(cache_->groups_[g].backend_pool, from[g], copies[g].index());
    Append(g, std::move(copies[g]));
  }
  return true;
}

void SequenceBlocks::Fork(const SequenceBlocks& other) {
  KVIST_CHECK(stored_ == 0 && groups_[0].table.empty());
  KVIST_CHECK(cache_ == other.cache_ && root_ == other.root_);
  KVIST_CHECK(sharing_ == Sharing::kShared && other.sharing_ == Sharing::kShared);
  const int64_t written = CeilDiv<int64_t>(other.stored_, cache_->block_tokens_);
  for (size_t g = 0; g < groups_.size(); ++g) {
    const Group& from = other.groups_[g];
    for (size_t b = 0; b < static_cast<size_t>(written); ++b) {
      Append(g, from.refs[b].empty() ? BlockRef() : from.refs[b].Share());
    }
    groups_[g].first_held = from.first_held;
  }
  keys_ = other.keys_;
  named_ = other.named_;
  stored_ = other.stored_;
}

bool SequenceBlocks::IsOnlyHolder(size_t group, size_t block) const {
  const BlockRef& ref = groups_[group].refs[block];
  return !ref.empty() && cache_->groups_[group].pool->Facts(ref.index()).references == 1;
}

int64_t SequenceBlocks::KeptWithout(
    absl::FunctionRef<bool(size_t group, const BlockKey& key)> elsewhere) const {
  for (size_t block = 0; block < groups_[0].table.size(); ++block) {
    const bool named = static_cast<int64_t>(block) < named_;
    for (size_t g = 0; g < groups_.size(); ++g) {
      if (!IsOnlyHolder(g, block) || (named && elsewhere(g, keys_[block]))) continue;
      return std::min(stored_, static_cast<int64_t>(block) * cache_->block_tokens_);
    }
  }
  return stored_;
}

bool SequenceBlocks::FreesWhatIsShort() const {
  for (size_t g = 0; g < groups_.size(); ++g) {
    if (cache_->groups_[g].pool->Available() > 0) continue;
    size_t block = groups_[g].table.size();  // the last ones are least shared
    while (block > 0 && !IsOnlyHolder(g, block - 1)) --block;
    if (block == 0) return false;
  }
  return true;
}

bool SequenceBlocks::SharesTail() const {
  if (stored_ % cache_->block_tokens_ == 0) return false;
  const size_t tail = static_cast<size_t>(stored_ / cache_->block_tokens_);
  for (size_t g = 0; g < groups_.size(); ++g) {
    const BlockPool& pool = *cache_->groups_[g].pool;
    if (pool.Facts(groups_[g].refs[tail].index()).references > 1) return true;
  }
  return false;
}

bool SequenceBlocks::OwnTail() {
  if (!SharesTail()) return true;
  for (size_t g = 0; g < groups_.size(); ++g) {
    if (groups_[g].reservation.remaining() + cache_->groups_[g].pool->Available() == 0) {
      return false;
    }
  }
  const size_t tail = static_cast<size_t>(stored_ / cache_->block_tokens_);
  for (size_t g = 0; g < groups_.size(); ++g) {
    Group& group = groups_[g];
    absl::StatusOr<BlockRef> copy = cache_->groups_[g].pool->Allocate(&group.reservation);
    KVIST_CHECK(copy.ok(), "a pool had fewer blocks than it said");
    cache_->copy_block_(cache_->groups_[g].backend_pool, group.table[tail], copy->index());
    group.refs[tail] = *std::move(copy);
    group.table[tail] = group.refs[tail].index();
  }
  return true;
}

bool SequenceBlocks::Fits(int64_t total, int64_t spare) const {
  const int64_t copied = SharesTail() ? 1 : 0;
  for (size_t g = 0; g < groups_.size(); ++g) {
    const Group& group = groups_[g];
    const int64_t longer =
        CeilDiv<int64_t>(total, cache_->block_tokens_) - static_cast<int64_t>(group.table.size());
    const int64_t more = std::min(longer, cache_->MostHeld(group.span, total) - group.Held());
    if (std::max<int64_t>(0, more) + copied + spare > cache_->groups_[g].pool->Available())
      return false;
  }
  return true;
}

bool SequenceBlocks::Reserve(int64_t total, int64_t spare) {
  const int64_t copied = SharesTail() ? 1 : 0;
  for (size_t g = 0; g < groups_.size(); ++g) {
    KVIST_CHECK(groups_[g].reservation.promised() == 0);
    absl::StatusOr<cache_manager::Reservation> reservation = cache_->groups_[g].pool->Reserve(
        {.blocks = static_cast<int32_t>(cache_->MostHeld(groups_[g].span, total)),
         .held = static_cast<int32_t>(groups_[g].Held() - copied),
         .spare = static_cast<int32_t>(spare)});
    if (!reservation.ok()) {
      for (Group& group : groups_) group.reservation = cache_manager::Reservation();
      return false;
    }
    groups_[g].reservation = *std::move(reservation);
  }
  KVIST_CHECK(OwnTail(), "the promise has a block for the copy");
  return true;
}

void SequenceBlocks::RefillPromises() {
  for (size_t g = 0; g < groups_.size(); ++g) {
    Group& group = groups_[g];
    const int64_t missing = group.reservation.promised() - group.Held();
    if (missing <= group.reservation.remaining()) continue;
    cache_->groups_[g].pool->Refill(&group.reservation, static_cast<int32_t>(missing));
  }
}

int64_t SequenceBlocks::GrowTo(int64_t total) {
  RefillPromises();
  if (!OwnTail()) return stored_;
  const int64_t length = static_cast<int64_t>(groups_[0].table.size());
  int64_t blocks = CeilDiv<int64_t>(total, cache_->block_tokens_);
  for (size_t g = 0; g < groups_.size(); ++g) {
    blocks = std::min<int64_t>(
        blocks, length + groups_[g].reservation.remaining() + cache_->groups_[g].pool->Available());
  }
  for (size_t g = 0; g < groups_.size(); ++g) {
    for (int64_t b = length; b < blocks; ++b) {
      absl::StatusOr<BlockRef> ref = cache_->groups_[g].pool->Allocate(&groups_[g].reservation);
      KVIST_CHECK(ref.ok(), "a pool had fewer blocks than it said");
      Append(g, std::move(ref).value());
    }
  }
  return std::min<int64_t>(total, std::max(length, blocks) * cache_->block_tokens_);
}

int64_t SequenceBlocks::GrowForDrafts(int64_t total, int64_t spare) {
  const int64_t length = static_cast<int64_t>(groups_[0].table.size());
  for (size_t g = 0; g < groups_.size(); ++g) {
    const cache_manager::Reservation& promise = groups_[g].reservation;
    const int64_t left = cache_->groups_[g].pool->Available() - spare;
    const int64_t more = promise.promised() > 0 ? promise.remaining() : std::max<int64_t>(0, left);
    total = std::min(total, (length + more) * cache_->block_tokens_);
  }
  return GrowTo(total);
}

void SequenceBlocks::MarkWritten(std::span<const int32_t> tokens, int64_t total) {
  const size_t block_tokens = static_cast<size_t>(cache_->block_tokens_);
  KVIST_CHECK(total >= stored_ && static_cast<size_t>(total) <= tokens.size());
  KVIST_CHECK(static_cast<size_t>(total) <= groups_[0].table.size() * block_tokens);
  stored_ = total;
  if (sharing_ == Sharing::kShared) {
    const int64_t full = total / cache_->block_tokens_;
    ComputeKeys(tokens, full);
    for (; named_ < full; ++named_) {
      const size_t b = static_cast<size_t>(named_);
      for (size_t g = 0; g < groups_.size(); ++g) {
        BlockRef& ref = groups_[g].refs[b];
        ref = cache_->groups_[g].pool->Commit(std::move(ref), ParentOf(named_), keys_[b],
                                              tokens.subspan(b * block_tokens, block_tokens));
        groups_[g].table[b] = ref.index();
      }
    }
  }
  for (size_t g = 0; g < groups_.size(); ++g) {
    Group& group = groups_[g];
    const int64_t first = cache_->FirstNeeded(group.span, total);
    for (; group.first_held < first; ++group.first_held) {
      if (group.first_held < group.sink_blocks) continue;
      group.refs[static_cast<size_t>(group.first_held)].Reset();
      group.table[static_cast<size_t>(group.first_held)] = -1;
    }
  }
  RefillPromises();
}

void SequenceBlocks::Release(std::span<const int32_t> tokens) {
  const int64_t partial = stored_ % cache_->block_tokens_;
  if (sharing_ == Sharing::kShared && partial > 0 && !SharesTail()) {
    const size_t last = static_cast<size_t>(named_);
    const auto written = tokens.subspan(last * static_cast<size_t>(cache_->block_tokens_),
                                        static_cast<size_t>(partial));
    for (size_t g = 0; g < groups_.size(); ++g) {
      cache_->groups_[g].pool->KeepPartial(std::move(groups_[g].refs[last]), ParentOf(named_),
                                           written);
    }
  }
  Discard();
}

void SequenceBlocks::Discard() {
  for (Group& group : groups_) {
    // From the last to the first, so that the pool sees the tail as the older use: it is evicted
    // first.
    while (!group.refs.empty()) group.refs.pop_back();
    group.table.clear();
    group.first_held = 0;
    group.reservation = cache_manager::Reservation();
  }
  named_ = 0;
  stored_ = 0;
}

absl::Status SequenceBlocks::CheckInvariants() const {
  const int64_t block_tokens = cache_->block_tokens_;
  const size_t length = groups_[0].table.size();
  for (size_t g = 0; g < groups_.size(); ++g) {
    const Group& group = groups_[g];
    if (group.table.size() != length || group.refs.size() != length) {
      return absl::InternalError("blocks 1: lengths of tables");
    }
    for (size_t b = 0; b < length; ++b) {
      const BlockRef& ref = group.refs[b];
      if (group.table[b] != (ref.empty() ? -1 : ref.index())) {
        return absl::InternalError("blocks 2: table and references");
      }
      if (ref.empty() == group.Holds(static_cast<int64_t>(b))) {
        return absl::InternalError("blocks 3: held blocks");
      }
    }
    if (group.first_held > cache_->FirstNeeded(group.span, stored_)) {
      return absl::InternalError("blocks 3: a needed block was given up");
    }
    const cache_manager::Reservation& promise = group.reservation;
    if (promise.remaining() > std::max<int64_t>(0, promise.promised() - group.Held())) {
      return absl::InternalError("blocks 6: promised blocks");
    }
    if (promise.promised() > 0 && SharesTail()) {
      return absl::InternalError("blocks 7: a promised block is shared");
    }
  }
  if (static_cast<int64_t>(length) * block_tokens < stored_) {
    return absl::InternalError("blocks 1: stored tokens without blocks");
  }
  if (named_ != (sharing_ == Sharing::kShared ? stored_ / block_tokens : 0)) {
    return absl::InternalError("blocks 4: named blocks");
  }
  if (static_cast<int64_t>(keys_.size()) < named_) return absl::InternalError("blocks 5: keys");
  return absl::OkStatus();
}

}  // namespace kvist::worker
