#include "services/frontend/in_flight.h"

#include <utility>

namespace kvist::services {

InFlight::Place::Place(Place&& other) noexcept
    : table_(std::exchange(other.table_, nullptr)), sent_(other.sent_) {}

InFlight::Place& InFlight::Place::operator=(Place&& other) noexcept {
  if (this == &other) return *this;
  Leave();
  table_ = std::exchange(other.table_, nullptr);
  sent_ = other.sent_;
  return *this;
}

InFlight::Place::~Place() { Leave(); }

void InFlight::Place::PrefillDone() {
  if (table_ == nullptr) return;
  MutexLock lock(table_->mutex_);
  sent_->prefill_tokens = 0;
}

void InFlight::Place::Leave() {
  if (table_ == nullptr) return;
  MutexLock lock(table_->mutex_);
  const auto worker = table_->by_worker_.find(sent_->worker_id);
  worker->second.erase(sent_);
  if (worker->second.empty()) table_->by_worker_.erase(worker);
  table_ = nullptr;
}

InFlight::Place InFlight::Enter(std::string worker_id, int64_t prefill_tokens, MonotonicTime now) {
  Place place;
  MutexLock lock(mutex_);
  std::list<Sent>& list = by_worker_[worker_id];
  place.sent_ = list.insert(
      list.end(),
      Sent{.worker_id = std::move(worker_id), .at = now, .prefill_tokens = prefill_tokens});
  place.table_ = this;
  return place;
}

InFlight::Sum InFlight::SumOf(const std::string& worker_id, MonotonicTime since) const {
  MutexLock lock(mutex_);
  Sum sum;
  const auto worker = by_worker_.find(worker_id);
  if (worker == by_worker_.end()) return sum;
  for (const Sent& sent : worker->second) {
    sum.prefill_tokens += sent.prefill_tokens;
    ++sum.sequences;
    if (sent.at <= since) continue;
    sum.recent_prefill_tokens += sent.prefill_tokens;
    ++sum.recent_sequences;
  }
  return sum;
}

}  // namespace kvist::services
