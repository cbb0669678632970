#include "services/frontend/cache_drift.h"

#include <algorithm>
#include <utility>

#include "cache_manager/limits.h"

namespace kvist::services {

bool CacheDrift::Record(const std::string& worker_id, uint64_t incarnation,
                        const Outcome& outcome) {
  MutexLock lock(mutex_);
  // Names may be drawn at each start: those of workers long gone are dropped with the others, which
  // soon have a window again.
  if (!by_worker_.contains(worker_id) && by_worker_.size() >= cache_manager::kMaxWorkers) {
    by_worker_.clear();
  }
  Window& window = by_worker_[worker_id];
  if (window.incarnation != incarnation) window = Window{.incarnation = incarnation};
  const Outcome counted{outcome.promised_tokens,
                        std::min(outcome.found_tokens, outcome.promised_tokens)};
  window.recent.push_back(counted);
  window.sum.promised_tokens += counted.promised_tokens;
  window.sum.found_tokens += counted.found_tokens;
  if (window.recent.size() > kWindowRequests) {
    window.sum.promised_tokens -= window.recent.front().promised_tokens;
    window.sum.found_tokens -= window.recent.front().found_tokens;
    window.recent.pop_front();
  }
  const bool drifts = window.recent.size() >= kLeastRequests &&
                      window.sum.found_tokens * 100 < window.sum.promised_tokens * kLeastPercent;
  if (!drifts) return false;
  window = Window{.incarnation = incarnation};
  if (doubted_.size() < cache_manager::kMaxWorkers) doubted_.insert({worker_id, incarnation});
  return true;
}

WorkerLives CacheDrift::TakeDoubted() {
  MutexLock lock(mutex_);
  return std::exchange(doubted_, {});
}

void CacheDrift::PutBack(const WorkerLives& doubted) {
  MutexLock lock(mutex_);
  for (const auto& life : doubted) {
    if (doubted_.size() < cache_manager::kMaxWorkers) doubted_.insert(life);
  }
}

}  // namespace kvist::services
