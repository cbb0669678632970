// Invariants (ARCHITECTURE.md 3; the numbers are CheckInvariants' own):
//   1. each block is in one state; free + reserved + active + cached + moving = total; the stacks
//      of free and reserved blocks hold exactly the blocks in those states.
//   2. a block is active if and only if it is referenced; the references of all blocks are the
//      BlockRefs out there.
//   3. free and reserved blocks are not in the prefix index; cached ones are (else nobody could
//      find them).
//   4. the cached blocks are exactly the policies' candidates: those with children (where only
//      leaves go) in `inner`, all others in `leaves`.
//   5. reserved blocks are what the Reservations out there have set aside; what they promise is at
//      most max_reserved_share of the pool.
//   6. the prefix index holds its own invariants, so a key exists once.
//   7. the log's placement digest of this pool is the sum over its named blocks, and those in other
//      tiers.
// Allocation takes from `leaves` first and then from `inner`, so it succeeds while any block is
// free or cached. A block's children may be here without it (a prefix found by key and evicted in
// part): they then are leaves or inner blocks like others, and become its children again once it is
// stored again.
#include "cache_manager/block_pool.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "cache_manager/event_log.h"
#include "cache_manager/limits.h"
#include "cache_manager/prefix_index.h"
#include "common/base/check.h"
#include "common/base/container_bytes.h"
#include "common/base/status.h"

namespace kvist::cache_manager {
namespace {

struct Block {
  BlockState state = BlockState::kFree;
  int32_t references = 0;
  uint64_t last_use = 0;
};

}  // namespace

struct BlockPool::State {
  State(const Options& pool_options, EventLog* event_log)
      : options(pool_options),
        log(event_log),
        max_reserved(static_cast<int32_t>(options.num_blocks * options.max_reserved_share)),
        blocks(static_cast<size_t>(options.num_blocks)),
        index({.num_blocks = options.num_blocks, .block_tokens = options.block_tokens}),
        leaves(options.make_policy(options.num_blocks)),
        inner(options.make_policy(options.num_blocks)) {
    free.reserve(blocks.size());
    reserved.reserve(blocks.size());
    for (BlockIndex block = options.num_blocks - 1; block >= 0; --block) free.push_back(block);
    counts[static_cast<size_t>(BlockState::kFree)] = options.num_blocks;
  }

  Block& at(BlockIndex block) { return blocks[static_cast<size_t>(block)]; }
  int32_t& count(BlockState state) { return counts[static_cast<size_t>(state)]; }
  int32_t count(BlockState state) const { return counts[static_cast<size_t>(state)]; }
  bool IsInner(BlockIndex block) const {
    return options.evict_leaves_only && index.HasChildren(index.entry(block).key);
  }

  // Leaves the block out of the old state's books and enters it in those of the new one.
  void SetState(BlockIndex block, BlockState to) {
    Block& b = at(block);
    if (b.state == BlockState::kCached) RemoveCandidate(block);
    --count(b.state);
    b.state = to;
    ++count(to);
    if (to == BlockState::kCached) InsertCandidate(block);
    if (to == BlockState::kFree) free.push_back(block);
    if (to == BlockState::kReserved) reserved.push_back(block);
  }
  void InsertCandidate(BlockIndex block) {
    (IsInner(block) ? inner : leaves)->Insert({.block = block, .last_use = at(block).last_use});
  }
  void RemoveCandidate(BlockIndex block) {
    (inner->Contains(block) ? inner : leaves)->Remove(block);
  }
  void Use(BlockIndex block) { at(block).last_use = ++uses; }

  void AddToIndex(BlockIndex block, const BlockKey& parent, const BlockKey& key,
                  std::span<const int32_t> tokens);
  void RemoveFromIndex(BlockIndex block);
  void DropCoveredPartials(const BlockKey& parent, std::span<const int32_t> tokens);
  void EvictBlock(BlockIndex block, EvictionCause cause);
  bool EvictOne(EvictionCause cause);
  BlockIndex TakeFreeOrEvict();
  absl::Status CheckBlocks(uint64_t elsewhere) const;
  absl::Status CheckBlock(BlockIndex block) const;

  const Options options;
  EventLog* const log;
  const int32_t max_reserved;
  std::vector<Block> blocks;
  std::vector<BlockIndex> free;      // taken from the back
  std::vector<BlockIndex> reserved;  // likewise
  PrefixIndex index;
  std::unique_ptr<EvictionPolicy> leaves;
  std::unique_ptr<EvictionPolicy> inner;
  std::array<int32_t, kNumBlockStates> counts{};
  std::array<uint64_t, kNumEvictionCauses> evictions{};
  uint64_t uses = 0;
  int64_t references_out = 0;
  int32_t promised = 0;   // by all Reservations, held blocks included
  int32_t set_aside = 0;  // of them, not yet taken
};

// A new child makes its parent an inner block; the last one's end makes it a leaf again.
void BlockPool::State::AddToIndex(BlockIndex block, const BlockKey& parent, const BlockKey& key,
                                  std::span<const int32_t> tokens) {
  const BlockIndex above = index.Find(parent);
  const bool refile = above != kNoBlock && at(above).state == BlockState::kCached;
  if (refile) RemoveCandidate(above);
  index.Insert(block, parent, key, tokens);
  if (refile) InsertCandidate(above);
  if (key.empty()) return;
  log->Append(BlockStored{options.id, key, parent, Tier::kDevice});
  log->AddToDigest(options.id, {.placement = PlacementHash(key, Tier::kDevice)});
}

void BlockPool::State::RemoveFromIndex(BlockIndex block) {
  const BlockIndex above = index.Find(index.entry(block).parent);
  const bool refile = above != kNoBlock && at(above).state == BlockState::kCached;
  if (refile) RemoveCandidate(above);
  index.Erase(block);
  if (refile) InsertCandidate(above);
}

void BlockPool::State::DropCoveredPartials(const BlockKey& parent,
                                           std::span<const int32_t> tokens) {
  int32_t looked_at = 0;
  for (BlockIndex child = index.NewestChild(parent); child != kNoBlock;) {
    if (looked_at++ == kMaxChildrenLookedAt) return;
    const BlockIndex older = index.entry(child).older;
    const std::span<const int32_t> have = index.tokens(child);
    if (at(child).state == BlockState::kCached && index.entry(child).key.empty() &&
        have.size() <= tokens.size() && std::equal(have.begin(), have.end(), tokens.begin())) {
      RemoveFromIndex(child);
      SetState(child, BlockState::kFree);
    }
    child = older;
  }
}

void BlockPool::State::EvictBlock(BlockIndex block, EvictionCause cause) {
  const BlockKey key = index.entry(block).key;
  RemoveFromIndex(block);
  SetState(block, BlockState::kFree);
  ++evictions[static_cast<size_t>(cause)];
  if (key.empty()) return;
  log->Append(BlockEvicted{options.id, key, Tier::kDevice, cause});
  log->AddToDigest(options.id, {.placement = uint64_t{0} - PlacementHash(key, Tier::kDevice)});
}

bool BlockPool::State::EvictOne(EvictionCause cause) {
  BlockIndex victim = leaves->Victim();
  if (victim == kNoBlock) victim = inner->Victim();
  if (victim == kNoBlock) return false;
  EvictBlock(victim, cause);
  return true;
}

BlockIndex BlockPool::State::TakeFreeOrEvict() {
  if (free.empty() && !EvictOne(EvictionCause::kCapacity)) return kNoBlock;
  const BlockIndex block = free.back();
  free.pop_back();
  return block;
}

BlockPool::BlockPool(const Options& options, EventLog* log) {
  KVIST_CHECK(options.num_blocks > 0 && options.block_tokens > 0);
  KVIST_CHECK(options.max_reserved_share >= 0 && options.max_reserved_share <= 1);
  KVIST_CHECK(log != nullptr && options.id < log->digests().size());
  state_ = std::make_unique<State>(options, log);
}

BlockPool::~BlockPool() {
  KVIST_CHECK(state_->references_out == 0 && state_->promised == 0,
              "a BlockRef or Reservation outlives its pool");
}

absl::StatusOr<BlockRef> BlockPool::Allocate(Reservation* reservation) {
  State& s = *state_;
  BlockIndex block = kNoBlock;
  if (reservation != nullptr && reservation->remaining_ > 0) {
    KVIST_CHECK(reservation->pool_ == this, "a reservation of another pool");
    --reservation->remaining_;
    --s.set_aside;
    block = s.reserved.back();
    s.reserved.pop_back();
  } else {
    block = s.TakeFreeOrEvict();
  }
  if (block == kNoBlock) {
    return absl::ResourceExhaustedError("every block of the pool is referenced or promised");
  }
  Reference(block);
  return BlockRef(this, block);
}

int32_t BlockPool::Available() const {
  return state_->count(BlockState::kFree) + state_->count(BlockState::kCached);
}

absl::StatusOr<Reservation> BlockPool::Reserve(const ReservationRequest& request) {
  State& s = *state_;
  KVIST_CHECK(request.held >= 0 && request.blocks >= request.held && request.spare >= 0);
  if (request.blocks > s.max_reserved - s.promised) {
    return absl::ResourceExhaustedError("promises would pass their share of the pool");
  }
  if (request.blocks - request.held > Available() - request.spare) {
    return absl::ResourceExhaustedError("not so many unreferenced, unpromised blocks");
  }
  s.promised += request.blocks;
  Reservation reservation(this, request.blocks, 0);
  Refill(&reservation, request.blocks - request.held);
  return reservation;
}

void BlockPool::Refill(Reservation* reservation, int32_t blocks) {
  State& s = *state_;
  KVIST_CHECK(reservation->pool_ == this && blocks <= reservation->promised_);
  while (reservation->remaining_ < blocks) {
    const BlockIndex block = s.TakeFreeOrEvict();
    if (block == kNoBlock) return;
    s.SetState(block, BlockState::kReserved);
    ++reservation->remaining_;
    ++s.set_aside;
  }
}

int32_t BlockPool::MaxPromised() const { return state_->max_reserved; }

BlockRef BlockPool::Commit(BlockRef block, const BlockKey& parent, const BlockKey& key,
                           std::span<const int32_t> tokens) {
  State& s = *state_;
  KVIST_CHECK(block.pool_ == this && s.at(block.index()).references == 1);
  KVIST_CHECK(!s.index.Contains(block.index()), "the block is named or kept already");
  KVIST_CHECK(tokens.size() == static_cast<size_t>(s.options.block_tokens));
  KVIST_CHECK(!key.empty() && !parent.empty());
  if (BlockRef existing = Find(key); !existing.empty()) return existing;
  s.DropCoveredPartials(parent, tokens);
  s.AddToIndex(block.index(), parent, key, tokens);
  return block;
}

void BlockPool::KeepPartial(BlockRef block, const BlockKey& parent,
                            std::span<const int32_t> tokens) {
  State& s = *state_;
  KVIST_CHECK(block.pool_ == this && s.at(block.index()).references == 1);
  KVIST_CHECK(!s.index.Contains(block.index()), "the block is named or kept already");
  KVIST_CHECK(!tokens.empty() && tokens.size() < static_cast<size_t>(s.options.block_tokens));
  KVIST_CHECK(!parent.empty());
  PartialMatch existing = FindPartial(parent, tokens);
  if (existing.matched_tokens == static_cast<int32_t>(tokens.size())) return;
  existing.block.Reset();
  s.DropCoveredPartials(parent, tokens);
  s.AddToIndex(block.index(), parent, BlockKey{}, tokens);
}

BlockRef BlockPool::Find(const BlockKey& key) {
  const BlockIndex block = state_->index.Find(key);
  if (block == kNoBlock) return BlockRef();
  Reference(block);
  return BlockRef(this, block);
}

bool BlockPool::Contains(const BlockKey& key) const { return state_->index.Find(key) != kNoBlock; }

PartialMatch BlockPool::FindPartial(const BlockKey& parent, std::span<const int32_t> tokens) {
  const PrefixIndex::Agreement best = state_->index.LongestAgreement(parent, tokens);
  if (best.block == kNoBlock) return PartialMatch();
  Reference(best.block);
  return PartialMatch{BlockRef(this, best.block), best.tokens};
}

bool BlockPool::Evict(const BlockKey& key, EvictionCause cause) {
  State& s = *state_;
  const BlockIndex block = s.index.Find(key);
  if (block == kNoBlock || s.at(block).state != BlockState::kCached || s.IsInner(block)) {
    return false;
  }
  s.EvictBlock(block, cause);
  return true;
}

void BlockPool::EvictPartials(const BlockKey& parent, EvictionCause cause) {
  State& s = *state_;
  int32_t looked_at = 0;
  for (BlockIndex child = s.index.NewestChild(parent);
       child != kNoBlock && looked_at < kMaxChildrenLookedAt; ++looked_at) {
    const BlockIndex older = s.index.entry(child).older;
    if (s.index.entry(child).key.empty() && s.at(child).state == BlockState::kCached) {
      s.EvictBlock(child, cause);
    }
    child = older;
  }
}

int32_t BlockPool::EvictSome(int32_t blocks, EvictionCause cause) {
  int32_t evicted = 0;
  while (evicted < blocks && state_->EvictOne(cause)) ++evicted;
  return evicted;
}

PoolCounts BlockPool::Counts() const {
  const State& s = *state_;
  return {.total = s.options.num_blocks,
          .free = s.count(BlockState::kFree),
          .reserved = s.count(BlockState::kReserved),
          .active = s.count(BlockState::kActive),
          .cached = s.count(BlockState::kCached),
          .moving = s.count(BlockState::kMoving)};
}

const std::array<uint64_t, kNumEvictionCauses>& BlockPool::evictions() const {
  return state_->evictions;
}

BlockFacts BlockPool::Facts(BlockIndex block) const {
  const State& s = *state_;
  KVIST_CHECK(block >= 0 && block < s.options.num_blocks);
  const Block& b = s.blocks[static_cast<size_t>(block)];
  const PrefixIndex::Entry& entry = s.index.entry(block);
  return {b.state, b.references, entry.key, entry.parent, entry.num_tokens};
}

std::span<const int32_t> BlockPool::Tokens(BlockIndex block) const {
  const State& s = *state_;
  KVIST_CHECK(block >= 0 && block < s.options.num_blocks);
  return s.index.Contains(block) ? s.index.tokens(block) : std::span<const int32_t>();
}

const BlockPool::Options& BlockPool::options() const { return state_->options; }

int64_t BlockPool::memory_bytes() const {
  const State& s = *state_;
  return static_cast<int64_t>(sizeof(State)) + HeapBytes(s.blocks) + HeapBytes(s.free) +
         HeapBytes(s.reserved) + s.index.memory_bytes() + s.leaves->memory_bytes() +
         s.inner->memory_bytes();
}

void BlockPool::Reference(BlockIndex block) {
  State& s = *state_;
  Block& b = s.at(block);
  if (b.references++ == 0) s.SetState(block, BlockState::kActive);
  ++s.references_out;
}

void BlockPool::Unreference(BlockIndex block) {
  State& s = *state_;
  Block& b = s.at(block);
  --s.references_out;
  if (--b.references > 0) return;
  s.Use(block);
  s.SetState(block, s.index.Contains(block) ? BlockState::kCached : BlockState::kFree);
}

void BlockPool::EndPromise(int32_t promised, int32_t remaining) {
  State& s = *state_;
  for (int32_t i = 0; i < remaining; ++i) {
    const BlockIndex block = s.reserved.back();
    s.reserved.pop_back();
    s.SetState(block, BlockState::kFree);
  }
  s.promised -= promised;
  s.set_aside -= remaining;
}

absl::Status BlockPool::State::CheckBlock(BlockIndex block) const {
  const Block& b = blocks[static_cast<size_t>(block)];
  const auto violated = [block](const char* what) {
    return absl::InternalError("block " + std::to_string(block) + ": " + what);
  };
  if ((b.references > 0) != (b.state == BlockState::kActive)) return violated("2: references");
  const bool indexed = index.Contains(block);
  const bool unused = b.state == BlockState::kFree || b.state == BlockState::kReserved;
  if (unused && indexed) return violated("3: unused but findable");
  const bool cached = b.state == BlockState::kCached;
  if (cached && !indexed) return violated("3: cached but not findable");
  const bool is_inner = cached && IsInner(block);
  if (inner->Contains(block) != is_inner) return violated("4: inner candidates");
  if (leaves->Contains(block) != (cached && !is_inner)) return violated("4: leaf candidates");
  return absl::OkStatus();
}

absl::Status BlockPool::State::CheckBlocks(uint64_t elsewhere) const {
  std::array<int32_t, kNumBlockStates> found{};
  int64_t references = 0;
  uint64_t placement = elsewhere;
  for (BlockIndex block = 0; block < options.num_blocks; ++block) {
    KVIST_RETURN_IF_ERROR(CheckBlock(block));
    const Block& b = blocks[static_cast<size_t>(block)];
    ++found[static_cast<size_t>(b.state)];
    references += b.references;
    const BlockKey& key = index.entry(block).key;
    if (!key.empty()) placement += PlacementHash(key, Tier::kDevice);
  }
  if (found != counts) return absl::InternalError("pool 1: counts of states");
  if (references != references_out) return absl::InternalError("pool 2: references out");
  if (placement != log->digests()[options.id].placement) {
    return absl::InternalError("pool 7: placement digest");
  }
  return absl::OkStatus();
}

absl::Status BlockPool::CheckInvariants(uint64_t elsewhere) const {
  const State& s = *state_;
  KVIST_RETURN_IF_ERROR(s.CheckBlocks(elsewhere));
  const auto stack_is = [&s](const std::vector<BlockIndex>& stack, BlockState state) {
    std::vector<bool> seen(s.blocks.size());
    for (const BlockIndex block : stack) {
      const size_t i = static_cast<size_t>(block);
      if (seen[i] || s.blocks[i].state != state) return false;
      seen[i] = true;
    }
    return static_cast<int32_t>(stack.size()) == s.count(state);
  };
  if (!stack_is(s.free, BlockState::kFree)) return absl::InternalError("pool 1: free stack");
  if (!stack_is(s.reserved, BlockState::kReserved)) {
    return absl::InternalError("pool 1: reserved stack");
  }
  if (s.leaves->size() + s.inner->size() != s.count(BlockState::kCached)) {
    return absl::InternalError("pool 4: candidates");
  }
  if (s.set_aside != s.count(BlockState::kReserved) || s.set_aside > s.promised ||
      s.promised > s.max_reserved) {
    return absl::InternalError("pool 5: reservations");
  }
  return s.index.CheckInvariants();
}

BlockRef::BlockRef(BlockRef&& other) noexcept
    : pool_(std::exchange(other.pool_, nullptr)), index_(std::exchange(other.index_, kNoBlock)) {}

BlockRef& BlockRef::operator=(BlockRef&& other) noexcept {
  if (this == &other) return *this;
  Reset();
  pool_ = std::exchange(other.pool_, nullptr);
  index_ = std::exchange(other.index_, kNoBlock);
  return *this;
}

BlockRef::~BlockRef() { Reset(); }

BlockRef BlockRef::Share() const {
  KVIST_CHECK(!empty());
  pool_->Reference(index_);
  return BlockRef(pool_, index_);
}

void BlockRef::Reset() {
  if (empty()) return;
  std::exchange(pool_, nullptr)->Unreference(std::exchange(index_, kNoBlock));
}

Reservation::Reservation(Reservation&& other) noexcept
    : pool_(std::exchange(other.pool_, nullptr)),
      promised_(std::exchange(other.promised_, 0)),
      remaining_(std::exchange(other.remaining_, 0)) {}

Reservation& Reservation::operator=(Reservation&& other) noexcept {
  if (this == &other) return *this;
  if (pool_ != nullptr) pool_->EndPromise(promised_, remaining_);
  pool_ = std::exchange(other.pool_, nullptr);
  promised_ = std::exchange(other.promised_, 0);
  remaining_ = std::exchange(other.remaining_, 0);
  return *this;
}

Reservation::~Reservation() {
  if (pool_ != nullptr) pool_->EndPromise(promised_, remaining_);
}

}  // namespace kvist::cache_manager
