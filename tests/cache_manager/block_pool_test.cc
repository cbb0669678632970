#include "cache_manager/block_pool.h"

#include <array>
#include <random>
#include <utility>
#include <vector>

#include "cache_manager/event_log.h"
#include "gtest/gtest.h"
#include "tests/cache_manager/naive_pool.h"

namespace kvist::cache_manager {
namespace {

constexpr int32_t kBlockTokens = 4;
using Tokens = std::vector<int32_t>;

BlockKey Root() {
  return RootKey({.model_fingerprint = "m", .attention = "full", .block_tokens = kBlockTokens});
}

class BlockPoolTest : public testing::Test {
 protected:
  void Open(int32_t num_blocks, bool leaves_only = true) {
    pool_ = std::make_unique<BlockPool>(BlockPool::Options{.num_blocks = num_blocks,
                                                           .block_tokens = kBlockTokens,
                                                           .evict_leaves_only = leaves_only},
                                        &log_);
  }
  BlockRef Allocate() {
    absl::StatusOr<BlockRef> block = pool_->Allocate();
    EXPECT_TRUE(block.ok()) << block.status();
    return block.ok() ? *std::move(block) : BlockRef();
  }
  // Stores a chain under `parent`, one block per entry; returns its keys. Nothing stays referenced;
  // the first block is the least recently used.
  std::vector<BlockKey> Store(BlockKey parent, const std::vector<Tokens>& blocks) {
    std::vector<BlockKey> keys;
    std::vector<BlockRef> refs;
    for (const Tokens& tokens : blocks) {
      keys.push_back(ChildKey(parent, tokens));
      refs.push_back(pool_->Commit(Allocate(), parent, keys.back(), tokens));
      parent = keys.back();
    }
    for (BlockRef& ref : refs) ref.Reset();
    return keys;
  }

  EventLog log_{{.num_pools = 1}};
  std::unique_ptr<BlockPool> pool_;
};

TEST_F(BlockPoolTest, HandsOutEveryBlockOnceAndThenIsExhausted) {
  Open(3);
  std::vector<BlockRef> refs;
  for (int i = 0; i < 3; ++i) refs.push_back(Allocate());
  EXPECT_EQ(pool_->Allocate().status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(pool_->Available(), 0);
  refs.pop_back();
  EXPECT_EQ(pool_->Available(), 1);
  EXPECT_FALSE(Allocate().empty());
}

TEST_F(BlockPoolTest, UnnamedBlockIsFreeAtItsLastReference) {
  Open(2);
  BlockRef block = Allocate();
  BlockRef shared = block.Share();
  block.Reset();
  EXPECT_EQ(pool_->Counts().active, 1);
  shared.Reset();
  EXPECT_EQ(pool_->Counts().free, 2);
}

TEST_F(BlockPoolTest, CommittingAPresentKeyAdoptsTheBlockThatIsThere) {
  Open(4);
  const Tokens tokens = {1, 2, 3, 4};
  const BlockKey key = ChildKey(Root(), tokens);
  const BlockRef first = pool_->Commit(Allocate(), Root(), key, tokens);
  const BlockRef second = pool_->Commit(Allocate(), Root(), key, tokens);
  EXPECT_EQ(first.index(), second.index());
  EXPECT_EQ(pool_->Counts().active, 1);
  EXPECT_EQ(pool_->Counts().free, 3);
  EXPECT_EQ(log_.last_seq(), 1u);  // stored once
}

TEST_F(BlockPoolTest, EvictsLeavesFirstThoughTheirParentsWereUsedEarlier) {
  Open(3);
  const auto chain = Store(Root(), {{1, 1, 1, 1}, {2, 2, 2, 2}, {3, 3, 3, 3}});
  const BlockRef a = Allocate();
  EXPECT_TRUE(pool_->Contains(chain[1]));
  EXPECT_FALSE(pool_->Contains(chain[2]));
  const BlockRef b = Allocate();
  EXPECT_TRUE(pool_->Contains(chain[0]));
  EXPECT_FALSE(pool_->Contains(chain[1]));
  EXPECT_TRUE(pool_->CheckInvariants().ok());
}

TEST_F(BlockPoolTest, WindowedPoolEvictsByUseAlone) {
  Open(3, /*leaves_only=*/false);
  const auto chain = Store(Root(), {{1, 1, 1, 1}, {2, 2, 2, 2}, {3, 3, 3, 3}});
  const BlockRef a = Allocate();
  EXPECT_FALSE(pool_->Contains(chain[0]));
  EXPECT_TRUE(pool_->Contains(chain[1]));
}

TEST_F(BlockPoolTest, AllocationSucceedsWhenOnlyInnerBlocksAreUnreferenced) {
  Open(2);
  const auto chain = Store(Root(), {{1, 1, 1, 1}, {2, 2, 2, 2}});
  const BlockRef leaf = pool_->Find(chain[1]);
  const BlockRef taken = Allocate();
  EXPECT_FALSE(taken.empty());
  EXPECT_FALSE(pool_->Contains(chain[0]));
  EXPECT_TRUE(pool_->CheckInvariants().ok());
}

TEST_F(BlockPoolTest, FindIsAUse) {
  Open(2);
  const BlockKey old = Store(Root(), {{1, 1, 1, 1}})[0];
  const BlockKey young = Store(Root(), {{2, 2, 2, 2}})[0];
  pool_->Find(old).Reset();
  const BlockRef taken = Allocate();
  EXPECT_TRUE(pool_->Contains(old));
  EXPECT_FALSE(pool_->Contains(young));
}

TEST_F(BlockPoolTest, ReservationsTakeAtMostTheirShare) {
  Open(8);
  EXPECT_EQ(pool_->MaxPromised(), 4);
  absl::StatusOr<Reservation> four = pool_->Reserve({.blocks = 4});
  ASSERT_TRUE(four.ok());
  EXPECT_EQ(pool_->Reserve({.blocks = 1}).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(pool_->Available(), 4);
  BlockRef used = *pool_->Allocate(&*four);
  EXPECT_EQ(four->remaining(), 3);
  EXPECT_EQ(pool_->Available(), 4);
  // What is held was promised too.
  EXPECT_EQ(pool_->Reserve({.blocks = 1}).status().code(), absl::StatusCode::kResourceExhausted);
  *four = Reservation();
  EXPECT_EQ(pool_->Counts().reserved, 0);
  EXPECT_EQ(pool_->Available(), 7);
  EXPECT_TRUE(pool_->Reserve({.blocks = 4}).ok());
}

TEST_F(BlockPoolTest, HeldBlocksAreNotSetAsideAgainAndSpareOnesStay) {
  Open(8);
  std::vector<BlockRef> held;
  for (int i = 0; i < 3; ++i) held.push_back(Allocate());
  EXPECT_FALSE(pool_->Reserve({.blocks = 4, .held = 2, .spare = 4}).ok());
  absl::StatusOr<Reservation> promise = pool_->Reserve({.blocks = 4, .held = 2, .spare = 3});
  ASSERT_TRUE(promise.ok());
  EXPECT_EQ(promise->remaining(), 2);
  EXPECT_EQ(pool_->Available(), 3);
}

TEST_F(BlockPoolTest, APromiseIsRefilledAsFarAsThereAreBlocks) {
  Open(4);
  const BlockKey key = Store(Root(), {{1, 1, 1, 1}})[0];
  absl::StatusOr<Reservation> promise = pool_->Reserve({.blocks = 2});
  ASSERT_TRUE(promise.ok());
  std::vector<BlockRef> own;
  own.push_back(*pool_->Allocate(&*promise));
  own.push_back(*pool_->Allocate(&*promise));
  BlockRef other = Allocate();
  own.pop_back();
  pool_->Refill(&*promise, 1);
  EXPECT_EQ(promise->remaining(), 1);
  EXPECT_TRUE(pool_->Contains(key));
  own.pop_back();
  BlockRef another = Allocate();
  pool_->Refill(&*promise, 2);  // by eviction
  EXPECT_EQ(promise->remaining(), 2);
  EXPECT_FALSE(pool_->Contains(key));
  BlockRef last = *pool_->Allocate(&*promise);
  const BlockRef shared = last.Share();
  last.Reset();
  pool_->Refill(&*promise, 2);  // somebody else holds it
  EXPECT_EQ(promise->remaining(), 1);
  EXPECT_TRUE(pool_->CheckInvariants().ok()) << pool_->CheckInvariants();
}

TEST_F(BlockPoolTest, APromiseCannotBeBrokenByHits) {
  Open(2);
  const auto chain = Store(Root(), {{1, 1, 1, 1}, {2, 2, 2, 2}});
  absl::StatusOr<Reservation> promise = pool_->Reserve({.blocks = 1});
  ASSERT_TRUE(promise.ok());
  std::vector<BlockRef> hits;
  for (const BlockKey& key : chain) hits.push_back(pool_->Find(key));
  EXPECT_TRUE(pool_->Allocate(&*promise).ok());
}

TEST_F(BlockPoolTest, PartialBlockIsFoundByItsFirstTokens) {
  Open(4);
  pool_->KeepPartial(Allocate(), Root(), Tokens{7, 8, 9});
  EXPECT_EQ(pool_->Counts().cached, 1);
  const PartialMatch match = pool_->FindPartial(Root(), Tokens{7, 8, 1, 1});
  EXPECT_EQ(match.matched_tokens, 2);
  EXPECT_FALSE(match.block.empty());
  EXPECT_TRUE(pool_->FindPartial(Root(), Tokens{1}).block.empty());
  EXPECT_TRUE(pool_->FindPartial(ChildKey(Root(), Tokens{1, 2, 3, 4}), Tokens{7}).block.empty());
}

TEST_F(BlockPoolTest, PartialBlockGoesWhenANewOneCoversIt) {
  Open(4);
  pool_->KeepPartial(Allocate(), Root(), Tokens{7});
  pool_->KeepPartial(Allocate(), Root(), Tokens{7, 8});
  pool_->KeepPartial(Allocate(), Root(), Tokens{7, 8});
  EXPECT_EQ(pool_->Counts().cached, 1);
  Store(Root(), {{7, 8, 9, 9}});
  EXPECT_EQ(pool_->Counts().cached, 1);
  EXPECT_EQ(pool_->FindPartial(Root(), Tokens{7, 8, 9}).matched_tokens, 3);
}

TEST_F(BlockPoolTest, PartialChildKeepsItsParentFromGoingFirst) {
  Open(2);
  const BlockKey parent = Store(Root(), {{1, 1, 1, 1}})[0];
  pool_->KeepPartial(Allocate(), parent, Tokens{5});
  EXPECT_FALSE(pool_->Evict(parent, EvictionCause::kCommand));
  const BlockRef taken = Allocate();
  EXPECT_TRUE(pool_->Contains(parent));
  EXPECT_TRUE(pool_->Evict(parent, EvictionCause::kCommand));
  EXPECT_EQ(pool_->evictions()[static_cast<size_t>(EvictionCause::kCapacity)], 1u);
  EXPECT_EQ(pool_->evictions()[static_cast<size_t>(EvictionCause::kCommand)], 1u);
}

TEST_F(BlockPoolTest, EvictLeavesReferencedBlocksAlone) {
  Open(2);
  const BlockKey key = Store(Root(), {{1, 1, 1, 1}})[0];
  const BlockRef held = pool_->Find(key);
  EXPECT_FALSE(pool_->Evict(key, EvictionCause::kCommand));
  EXPECT_EQ(pool_->EvictSome(5, EvictionCause::kDrained), 0);
  EXPECT_FALSE(pool_->Evict(Root(), EvictionCause::kCommand));
}

TEST_F(BlockPoolTest, LooksAtNoMoreThanTheNewestChildren) {
  Open(kMaxChildrenLookedAt + 1);
  for (int32_t i = 0; i <= kMaxChildrenLookedAt; ++i) Store(Root(), {{i, 1, 1, 1}});
  EXPECT_EQ(pool_->FindPartial(Root(), Tokens{0, 1}).matched_tokens, 0);  // the oldest of 65
  EXPECT_EQ(pool_->FindPartial(Root(), Tokens{1, 1}).matched_tokens, 2);
}

// Drives a real and a naive pool through the same random operations.
class RandomPool {
 public:
  struct Shape {
    int32_t num_blocks;
    bool leaves_only;
    uint64_t seed;
  };
  explicit RandomPool(const Shape& shape)
      : pool_({.num_blocks = shape.num_blocks,
               .block_tokens = kBlockTokens,
               .evict_leaves_only = shape.leaves_only},
              &log_),
        naive_(shape.num_blocks, shape.leaves_only),
        rng_(shape.seed) {
    keys_.push_back(Root());
  }

  void Step() {
    switch (Below(16)) {
      case 0:
      case 1:
      case 2:
      case 3:
        return Allocate();
      case 4:
      case 5:
      case 6:
        return Commit();
      case 7:
        return KeepPartial();
      case 8:
      case 9:
        return Find();
      case 10:
        return FindPartial();
      case 11:
        return Share();
      case 12:
        return Reserve();
      case 13:
        return EvictOne();
      case 14:
        return EvictSome();
      default:
        return Drop(Below(3) + 1);
    }
  }

  // Compares everything that can be seen.
  void Compare() {
    const PoolCounts counts = pool_.Counts();
    ASSERT_EQ(counts.free, naive_.free());
    ASSERT_EQ(counts.reserved, naive_.reserved());
    ASSERT_EQ(counts.active, naive_.active());
    ASSERT_EQ(counts.cached, naive_.cached());
    ASSERT_EQ(pool_.Available(), naive_.free() + naive_.cached());
    for (const auto& [index, expected] : naive_.blocks()) {
      const BlockFacts facts = pool_.Facts(index);
      ASSERT_EQ(facts.references, expected.references);
      ASSERT_EQ(facts.key, expected.key);
      ASSERT_EQ(facts.num_tokens, static_cast<int32_t>(expected.tokens.size()));
    }
    const absl::Status status = pool_.CheckInvariants();
    ASSERT_TRUE(status.ok()) << status;
  }

  void CompareEvictions() {
    std::vector<BlockKey> evicted;
    for (const Event& event : log_.TakeBatch().events) {
      if (const auto* e = std::get_if<BlockEvicted>(&event)) evicted.push_back(e->key);
    }
    ASSERT_EQ(evicted, naive_.TakeEvicted());
  }

  // Invariant 7 of ARCHITECTURE.md 3: at rest nothing is active.
  void Finish() {
    Drop(refs_.size());
    while (!reservations_.empty()) DropReservation();
    Compare();
    ASSERT_EQ(pool_.Counts().active, 0);
    ASSERT_EQ(pool_.Counts().reserved, 0);
  }

 private:
  size_t Below(size_t limit) { return rng_() % limit; }
  Tokens RandomTokens(size_t count) {
    Tokens tokens(count);
    for (int32_t& token : tokens) token = static_cast<int32_t>(Below(2));
    return tokens;
  }
  const BlockKey& RandomKey() { return keys_[Below(keys_.size())]; }
  void Hold(BlockRef ref) { refs_.push_back(std::move(ref)); }

  void Allocate() {
    Reservation* from = nullptr;
    if (!reservations_.empty() && Below(2) == 0) from = &reservations_[Below(reservations_.size())];
    const bool promised = from != nullptr && from->remaining() > 0;
    absl::StatusOr<BlockRef> block = pool_.Allocate(from);
    if (promised) naive_.TakeReserved();
    ASSERT_EQ(block.ok(), promised || naive_.MakeRoom());
    if (!block.ok()) return Drop(refs_.size() / 2 + 1);
    ASSERT_TRUE(naive_.Allocated(block->index()));
    Hold(*std::move(block));
  }
  // A held block that nobody else holds and that is not findable yet; false if there is none.
  bool TakeWritable(BlockRef& out) {
    for (size_t i = refs_.size(); i-- > 0;) {
      NaiveBlock& b = naive_.at(refs_[i].index());
      if (b.references != 1 || !b.tokens.empty()) continue;
      out = std::move(refs_[i]);
      refs_.erase(refs_.begin() + static_cast<ptrdiff_t>(i));
      return true;
    }
    return false;
  }
  void Commit() {
    BlockRef block;
    if (!TakeWritable(block)) return;
    const BlockIndex written = block.index();
    const BlockKey parent = RandomKey();
    const Tokens tokens = RandomTokens(kBlockTokens);
    const BlockKey key = ChildKey(parent, tokens);
    BlockRef named = pool_.Commit(std::move(block), parent, key, tokens);
    const BlockIndex existing = naive_.Find(key);
    ASSERT_EQ(named.index(), existing == kNoBlock ? written : existing);
    if (existing == kNoBlock) {
      naive_.DropCovered(parent, tokens);
      NaiveBlock& b = naive_.at(written);
      b.key = key, b.parent = parent, b.tokens = tokens;
    } else {
      naive_.Reference(existing);
      naive_.Unreference(written);
    }
    if (keys_.size() < 40)
      keys_.push_back(key);
    else
      keys_[Below(keys_.size())] = key;
    Hold(std::move(named));
  }
  void KeepPartial() {
    BlockRef block;
    if (!TakeWritable(block)) return;
    const BlockIndex written = block.index();
    const BlockKey parent = RandomKey();
    const Tokens tokens = RandomTokens(1 + Below(kBlockTokens - 1));
    pool_.KeepPartial(std::move(block), parent, tokens);
    const auto [existing, agreed] = naive_.FindPartial(parent, tokens);
    if (existing != kNoBlock) {  // looking at it was a use
      naive_.Reference(existing);
      naive_.Unreference(existing);
    }
    if (agreed < static_cast<int>(tokens.size())) {
      naive_.DropCovered(parent, tokens);
      naive_.at(written).parent = parent;
      naive_.at(written).tokens = tokens;
    }
    naive_.Unreference(written);
  }
  void Find() {
    const BlockKey key = RandomKey();
    BlockRef found = pool_.Find(key);
    ASSERT_EQ(found.empty() ? kNoBlock : found.index(), naive_.Find(key));
    ASSERT_EQ(pool_.Contains(key), !found.empty());
    if (found.empty()) return;
    naive_.Reference(found.index());
    Hold(std::move(found));
  }
  void FindPartial() {
    const BlockKey parent = RandomKey();
    const Tokens tokens = RandomTokens(1 + Below(kBlockTokens));
    PartialMatch found = pool_.FindPartial(parent, tokens);
    const auto [index, agreed] = naive_.FindPartial(parent, tokens);
    ASSERT_EQ(found.matched_tokens, agreed);
    ASSERT_EQ(found.block.empty() ? kNoBlock : found.block.index(), index);
    if (index == kNoBlock) return;
    naive_.Reference(index);
    Hold(std::move(found.block));
  }
  void Share() {
    if (refs_.empty()) return;
    BlockRef shared = refs_[Below(refs_.size())].Share();
    naive_.Reference(shared.index());
    Hold(std::move(shared));
  }
  void Reserve() {
    if (reservations_.size() == 4) return DropReservation();
    if (!reservations_.empty() && Below(2) == 0) return Refill();
    ReservationRequest request{.blocks = static_cast<int32_t>(Below(4)),
                               .spare = static_cast<int32_t>(Below(3))};
    request.held = static_cast<int32_t>(Below(static_cast<size_t>(request.blocks) + 1));
    absl::StatusOr<Reservation> reservation = pool_.Reserve(request);
    ASSERT_EQ(reservation.ok(), naive_.Reserve(request, pool_.options().num_blocks / 2));
    if (reservation.ok()) reservations_.push_back(*std::move(reservation));
  }
  void Refill() {
    Reservation& reservation = reservations_[Below(reservations_.size())];
    const int32_t before = reservation.remaining();
    pool_.Refill(&reservation, reservation.promised());
    ASSERT_EQ(reservation.remaining() - before, naive_.Refill(reservation.promised() - before));
  }
  void DropReservation() {
    naive_.EndPromise(reservations_.back().promised(), reservations_.back().remaining());
    reservations_.pop_back();
  }
  void EvictOne() {
    const BlockKey key = RandomKey();
    const BlockIndex index = naive_.Find(key);
    const bool can = index != kNoBlock && naive_.at(index).references == 0 &&
                     !(pool_.options().evict_leaves_only && naive_.HasChildren(key));
    ASSERT_EQ(pool_.Evict(key, EvictionCause::kCommand), can);
    if (can) naive_.Evict(index);
  }
  void EvictSome() {
    const int32_t wanted = static_cast<int32_t>(Below(3));
    const int32_t possible = std::min<int32_t>(wanted, naive_.cached());
    ASSERT_EQ(pool_.EvictSome(wanted, EvictionCause::kQuota), possible);
    for (int32_t i = 0; i < possible; ++i) naive_.Evict(naive_.Victim());
  }
  void Drop(size_t count) {
    for (; count > 0 && !refs_.empty(); --count) {
      std::swap(refs_[Below(refs_.size())], refs_.back());
      naive_.Unreference(refs_.back().index());
      refs_.pop_back();
    }
  }

  EventLog log_{{.num_pools = 1}};
  BlockPool pool_;
  NaivePool naive_;
  std::mt19937_64 rng_;
  std::vector<BlockKey> keys_;  // names to try: made so far, some long evicted
  std::vector<Reservation> reservations_;
  std::vector<BlockRef> refs_;
};

void RunRandomOperations(const RandomPool::Shape& shape, int operations, int compare_every) {
  RandomPool pool(shape);
  for (int i = 0; i < operations && !testing::Test::HasFatalFailure(); ++i) {
    pool.Step();
    pool.CompareEvictions();
    if (i % compare_every == 0) pool.Compare();
  }
  if (!testing::Test::HasFatalFailure()) pool.Finish();
}

TEST(BlockPoolRandomTest, SmallPoolMatchesTheNaiveOneAfterEachOf100000Operations) {
  RunRandomOperations({.num_blocks = 12, .leaves_only = true, .seed = 1}, 100'000, 1);
}

TEST(BlockPoolRandomTest, SmallWindowedPoolMatchesTheNaiveOneAfterEachOf50000Operations) {
  RunRandomOperations({.num_blocks = 12, .leaves_only = false, .seed = 2}, 50'000, 1);
}

TEST(BlockPoolRandomTest, LargerPoolMatchesTheNaiveOneOver50000Operations) {
  RunRandomOperations({.num_blocks = 150, .leaves_only = true, .seed = 3}, 50'000, 50);
}

}  // namespace
}  // namespace kvist::cache_manager
