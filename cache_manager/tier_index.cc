// Invariants:
//   1. by_key_ leads to exactly the slots that are stored or being written, by their block's key.
//   2. free_ has exactly the free slots; the candidates for eviction are exactly the stored ones.
//   3. stored_ and placement_ are a recount of the stored slots.
//   4. wipes_ has exactly the slots marked so, and those are free.
// A dropped slot is one whose write is under way while its block was evicted: it is free, and to be
// wiped, when the write ends.
#include "cache_manager/tier_index.h"

#include <algorithm>
#include <utility>

#include "cache_manager/digest.h"
#include "cache_manager/event_log.h"
#include "cache_manager/eviction/lru.h"
#include "cache_manager/limits.h"
#include "common/base/check.h"
#include "common/base/container_bytes.h"

namespace kvist::cache_manager {

TierIndex::TierIndex(const Options& options, const std::vector<Found>& found, EventLog* log)
    : options_(options),
      log_(log),
      slots_(static_cast<size_t>(options.num_slots)),
      victims_(MakeLruPolicy(options.num_slots)) {
  KVIST_CHECK(options.num_slots > 0 &&
              static_cast<uint32_t>(options.num_slots) <= kMaxBlocksPerPool);
  wipes_.reserve(slots_.size());
  // So that it never grows: deleted places are used again while it is at most 25/32 full.
  by_key_.reserve(slots_.size() * 5 / 4 + 1);
  free_.reserve(slots_.size());
  for (auto it = found.rbegin(); it != found.rend(); ++it) {
    KVIST_CHECK(it->slot >= 0 && it->slot < options.num_slots && !it->block.key.empty());
    Slot& slot = at(it->slot);
    if (slot.state == State::kFree && by_key_.emplace(it->block.key, it->slot).second) {
      slot = {.state = State::kWriting, .block = it->block};
    }
  }
  for (const Found& block : found) {
    if (at(block.slot).state == State::kWriting) Store(block.slot);
  }
  for (int32_t slot = options.num_slots - 1; slot >= 0; --slot) {
    if (at(slot).state == State::kFree) free_.push_back(slot);
  }
}

int64_t TierIndex::memory_bytes() const {
  return HeapBytes(slots_) + HeapBytes(free_) + FlatHashBytes(by_key_) + victims_->memory_bytes() +
         HeapBytes(wipes_);
}

std::optional<int32_t> TierIndex::Begin(const TierBlock& block) {
  KVIST_CHECK(!block.key.empty() && !block.parent.empty());
  if (const auto known = by_key_.find(block.key); known != by_key_.end()) {
    if (at(known->second).state == State::kStored) Use(known->second);
    return std::nullopt;
  }
  if (free_.empty()) {
    const int32_t victim = victims_->Victim();
    if (victim == kNoBlock) return std::nullopt;
    Remove(victim, EvictionCause::kCapacity);
    Free(victim);
  }
  const int32_t slot = free_.back();
  free_.pop_back();
  if (at(slot).wipe) {
    at(slot).wipe = false;
    std::erase(wipes_, slot);
  }
  at(slot).state = State::kWriting;
  at(slot).block = block;
  by_key_.emplace(block.key, slot);
  return slot;
}

void TierIndex::Finish(int32_t slot) {
  if (at(slot).state == State::kDropped) return FreeToWipe(slot);
  KVIST_CHECK(at(slot).state == State::kWriting);
  Store(slot);
}

void TierIndex::Abandon(int32_t slot) {
  if (at(slot).state == State::kDropped) return FreeToWipe(slot);
  KVIST_CHECK(at(slot).state == State::kWriting);
  by_key_.erase(at(slot).block.key);
  Free(slot);
}

std::optional<int32_t> TierIndex::Find(const BlockKey& key) {
  const auto found = by_key_.find(key);
  if (found == by_key_.end() || at(found->second).state != State::kStored) return std::nullopt;
  Use(found->second);
  return found->second;
}

bool TierIndex::Contains(const BlockKey& key) const {
  const auto found = by_key_.find(key);
  return found != by_key_.end() &&
         slots_[static_cast<size_t>(found->second)].state == State::kStored;
}

bool TierIndex::Evict(const BlockKey& key, EvictionCause cause) {
  const auto found = by_key_.find(key);
  if (found == by_key_.end()) return false;
  const int32_t slot = found->second;
  if (at(slot).state == State::kWriting) {
    by_key_.erase(found);
    at(slot).state = State::kDropped;
    return true;
  }
  Remove(slot, cause);
  FreeToWipe(slot);
  return true;
}

std::optional<int32_t> TierIndex::TakeWipe() {
  if (wipes_.empty()) return std::nullopt;
  const int32_t slot = wipes_.back();
  wipes_.pop_back();
  at(slot).wipe = false;
  return slot;
}

std::optional<TierBlock> TierIndex::At(int32_t slot) const {
  KVIST_CHECK(slot >= 0 && slot < options_.num_slots);
  const Slot& s = slots_[static_cast<size_t>(slot)];
  if (s.state != State::kStored) return std::nullopt;
  return s.block;
}

void TierIndex::Store(int32_t slot) {
  Slot& s = at(slot);
  s.state = State::kStored;
  s.last_use = ++uses_;
  victims_->Insert({.block = slot, .last_use = s.last_use});
  ++stored_;
  const uint64_t placement = PlacementHash(s.block.key, options_.tier);
  placement_ += placement;
  log_->Append(BlockStored{options_.pool, s.block.key, s.block.parent, options_.tier});
  log_->AddToDigest(options_.pool, {.placement = placement});
}

void TierIndex::Remove(int32_t slot, EvictionCause cause) {
  const BlockKey key = at(slot).block.key;
  victims_->Remove(slot);
  by_key_.erase(key);
  --stored_;
  ++evictions_[static_cast<size_t>(cause)];
  const uint64_t placement = PlacementHash(key, options_.tier);
  placement_ -= placement;
  log_->Append(BlockEvicted{options_.pool, key, options_.tier, cause});
  log_->AddToDigest(options_.pool, {.placement = uint64_t{0} - placement});
}

void TierIndex::Free(int32_t slot) {
  at(slot).state = State::kFree;
  at(slot).block = TierBlock();
  free_.push_back(slot);
}

void TierIndex::FreeToWipe(int32_t slot) {
  Free(slot);
  at(slot).wipe = true;
  wipes_.push_back(slot);
}

void TierIndex::Use(int32_t slot) {
  victims_->Remove(slot);
  at(slot).last_use = ++uses_;
  victims_->Insert({.block = slot, .last_use = at(slot).last_use});
}

absl::Status TierIndex::CheckInvariants() const {
  size_t known = 0, free = 0, wipes = 0;
  int32_t stored = 0;
  uint64_t placement = 0;
  for (int32_t i = 0; i < options_.num_slots; ++i) {
    const Slot& slot = slots_[static_cast<size_t>(i)];
    const bool is_stored = slot.state == State::kStored;
    if (is_stored || slot.state == State::kWriting) {
      ++known;
      const auto found = by_key_.find(slot.block.key);
      if (found == by_key_.end() || found->second != i) {
        return absl::InternalError("tier 1: a key leads elsewhere");
      }
    }
    if (victims_->Contains(i) != is_stored) return absl::InternalError("tier 2: candidates");
    if (slot.state == State::kFree) ++free;
    if (slot.wipe && slot.state != State::kFree) return absl::InternalError("tier 4: wiped slot");
    wipes += slot.wipe;
    if (!is_stored) continue;
    ++stored;
    placement += PlacementHash(slot.block.key, options_.tier);
  }
  if (known != by_key_.size()) return absl::InternalError("tier 1: keys without a slot");
  if (free != free_.size()) return absl::InternalError("tier 2: free slots");
  if (stored != stored_ || placement != placement_) return absl::InternalError("tier 3: counts");
  if (wipes != wipes_.size()) return absl::InternalError("tier 4: slots to wipe");
  return absl::OkStatus();
}

}  // namespace kvist::cache_manager
