// A binary heap by last use, with each block's place in it. A list ordered by arrival would be
// O(1), but candidates do not arrive in order of use: a parent becomes one when its last child
// goes, long after its own last use.
//
// Invariants: heap_[place_[b]].block == b for every candidate b, place_ is -1 for all others; no
// entry is older than its parent in the heap.
#include "cache_manager/eviction/lru.h"

#include <utility>
#include <vector>

#include "common/base/check.h"

namespace kvist::cache_manager {
namespace {

constexpr int32_t kNoPlace = -1;

class LruPolicy final : public EvictionPolicy {
 public:
  explicit LruPolicy(int32_t capacity)
      : EvictionPolicy(capacity *
                       static_cast<int64_t>(sizeof(EvictionCandidate) + sizeof(int32_t))),
        place_(static_cast<size_t>(capacity), kNoPlace) {
    heap_.reserve(static_cast<size_t>(capacity));
  }

  void Insert(const EvictionCandidate& candidate) override {
    KVIST_CHECK(!Contains(candidate.block));
    heap_.push_back(candidate);
    SiftUp(heap_.size() - 1);
  }

  void Remove(BlockIndex block) override {
    KVIST_CHECK(Contains(block));
    const size_t hole = static_cast<size_t>(place_[static_cast<size_t>(block)]);
    place_[static_cast<size_t>(block)] = kNoPlace;
    const EvictionCandidate last = heap_.back();
    heap_.pop_back();
    if (hole == heap_.size()) return;
    Put(hole, last);
    SiftUp(hole);
    SiftDown(static_cast<size_t>(place_[static_cast<size_t>(last.block)]));
  }

  BlockIndex Victim() const override { return heap_.empty() ? kNoBlock : heap_.front().block; }

  bool Contains(BlockIndex block) const override {
    return place_[static_cast<size_t>(block)] != kNoPlace;
  }

  int32_t size() const override { return static_cast<int32_t>(heap_.size()); }

 private:
  void Put(size_t place, const EvictionCandidate& candidate) {
    heap_[place] = candidate;
    place_[static_cast<size_t>(candidate.block)] = static_cast<int32_t>(place);
  }

  void SiftUp(size_t place) {
    const EvictionCandidate moving = heap_[place];
    while (place > 0) {
      const size_t parent = (place - 1) / 2;
      if (heap_[parent].last_use <= moving.last_use) break;
      Put(place, heap_[parent]);
      place = parent;
    }
    Put(place, moving);
  }

  void SiftDown(size_t place) {
    const EvictionCandidate moving = heap_[place];
    while (2 * place + 1 < heap_.size()) {
      size_t child = 2 * place + 1;
      if (child + 1 < heap_.size() && heap_[child + 1].last_use < heap_[child].last_use) ++child;
      if (moving.last_use <= heap_[child].last_use) break;
      Put(place, heap_[child]);
      place = child;
    }
    Put(place, moving);
  }

  std::vector<EvictionCandidate> heap_;
  std::vector<int32_t> place_;
};

}  // namespace

std::unique_ptr<EvictionPolicy> MakeLruPolicy(int32_t capacity) {
  return std::make_unique<LruPolicy>(capacity);
}

}  // namespace kvist::cache_manager
