#include "cache_manager/event_log.h"

#include <algorithm>
#include <utility>

#include "common/base/check.h"

namespace kvist::cache_manager {

// Invariant: waiting_keys_ is the sum of KeyCount over waiting_.
EventLog::EventLog(const Options& options)
    : max_waiting_(options.max_waiting), max_waiting_keys_(options.max_waiting_keys) {
  KVIST_CHECK(options.num_pools > 0 && options.num_pools <= kMaxPoolsPerWorker);
  KVIST_CHECK(options.max_waiting > 0 && options.max_waiting_keys >= kMaxKeysPerEvent);
  digests_.resize(options.num_pools);
}

void EventLog::Append(Event event) {
  const size_t keys = KeyCount(event);
  if (waiting_.size() == max_waiting_ || waiting_keys_ + keys > max_waiting_keys_) {
    DropThrough(last_seq());
    ++overflows_;
  }
  waiting_keys_ += keys;
  waiting_.push_back(std::move(event));
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
  while (!waiting_.empty() && run.events.size() < max_events) {
    const size_t more = KeyCount(waiting_.front());
    if (keys + more > kMaxKeysPerBatch && more > 0 && !run.events.empty()) break;
    keys += more;
    waiting_keys_ -= more;
    run.events.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
  }
  first_waiting_seq_ += run.events.size();
  return run;
}

void EventLog::DropThrough(uint64_t seq) {
  if (seq < first_waiting_seq_) return;
  const size_t dropped = std::min<uint64_t>(seq - first_waiting_seq_ + 1, waiting_.size());
  for (size_t i = 0; i < dropped; ++i) waiting_keys_ -= KeyCount(waiting_[i]);
  waiting_.erase(waiting_.begin(), waiting_.begin() + static_cast<ptrdiff_t>(dropped));
  first_waiting_seq_ += dropped;
}

}  // namespace kvist::cache_manager
