#include "cache_manager/event_log.h"

#include <algorithm>
#include <utility>

#include "common/base/check.h"

namespace kvist::cache_manager {
namespace {

// Some hundred steps of a busy worker, 100 KB.
constexpr size_t kFirstRingEvents = 1024;

}  // namespace

// Invariant: waiting_keys_ is the sum of KeyCount over waiting_.
EventLog::EventLog(const Options& options)
    : max_waiting_(options.max_waiting), max_waiting_keys_(options.max_waiting_keys) {
  KVIST_CHECK(options.num_pools > 0 && options.num_pools <= kMaxPoolsPerWorker);
  KVIST_CHECK(options.max_waiting > 0 && options.max_waiting_keys >= kMaxKeysPerEvent);
  digests_.resize(options.num_pools);
  ring_.resize(std::min(max_waiting_, kFirstRingEvents));
}

void EventLog::Append(Event event) {
  const size_t keys = KeyCount(event);
  if (waiting_ == max_waiting_ || waiting_keys_ + keys > max_waiting_keys_) {
    DropThrough(last_seq());
    ++overflows_;
  }
  if (waiting_ == ring_.size()) {
    std::rotate(ring_.begin(), ring_.begin() + static_cast<ptrdiff_t>(first_), ring_.end());
    first_ = 0;
    ring_.resize(std::min(max_waiting_, 2 * ring_.size()));
  }
  waiting_keys_ += keys;
  at(waiting_++) = std::move(event);
}

void EventLog::DropFirst(size_t count) {
  first_ = (first_ + count) % ring_.size();
  waiting_ -= count;
  first_waiting_seq_ += count;
}

void EventLog::AddToDigest(PoolIndex pool, PoolDigest change) {
  KVIST_CHECK(pool < digests_.size());
  digests_[pool].placement += change.placement;
  digests_[pool].holding += change.holding;
}

EventRun EventLog::TakeBatch(size_t max_events) {
  EventRun run;
  run.first_seq = first_waiting_seq_;
  size_t keys = 0;
  size_t taken = 0;
  for (; taken < waiting_ && taken < max_events; ++taken) {
    const size_t more = KeyCount(at(taken));
    if (keys + more > kMaxKeysPerBatch && more > 0 && taken > 0) break;
    keys += more;
    waiting_keys_ -= more;
    run.events.push_back(std::move(at(taken)));
  }
  DropFirst(taken);
  return run;
}

void EventLog::DropThrough(uint64_t seq) {
  if (seq < first_waiting_seq_) return;
  const size_t dropped = std::min<uint64_t>(seq - first_waiting_seq_ + 1, waiting_);
  for (size_t i = 0; i < dropped; ++i) waiting_keys_ -= KeyCount(std::exchange(at(i), Event()));
  DropFirst(dropped);
}

}  // namespace kvist::cache_manager
