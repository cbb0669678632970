// A queue between threads with a limit and an end.
#ifndef KVIST_COMMON_BASE_BOUNDED_QUEUE_H_
#define KVIST_COMMON_BASE_BOUNDED_QUEUE_H_

#include <cstddef>
#include <deque>
#include <iterator>
#include <optional>
#include <utility>
#include <vector>

#include "common/base/check.h"
#include "common/base/mutex.h"

namespace kvist {

// First in, first out; any number of producers and consumers. Owns the values it holds.
// Thread-safe.
template <typename T>
class BoundedQueue {
 public:
  // REQUIRES: capacity > 0.
  explicit BoundedQueue(size_t capacity) : capacity_(capacity) { KVIST_CHECK(capacity > 0); }

  // Takes `value` and returns true; returns false, leaving `value` as it was, if the queue is full
  // or closed.
  [[nodiscard]] bool TryPush(T& value) ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(mutex_);
    if (closed_ || values_.size() >= capacity_) return false;
    values_.push_back(std::move(value));
    changed_.NotifyOne();
    return true;
  }

  // Waits for a value until `deadline`. nullopt: the deadline passed, or the queue is closed and
  // empty.
  template <typename TimePoint>
  std::optional<T> PopUntil(TimePoint deadline) ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(mutex_);
    while (values_.empty() && !closed_) {
      if (!changed_.WaitUntil(mutex_, deadline) && values_.empty()) return std::nullopt;
    }
    return PopLocked();
  }

  // Waits for a value. nullopt: the queue is closed and empty.
  std::optional<T> Pop() ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(mutex_);
    while (values_.empty() && !closed_) changed_.Wait(mutex_);
    return PopLocked();
  }

  // Takes everything that waits now, without waiting.
  std::vector<T> Drain() ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(mutex_);
    std::vector<T> all(std::make_move_iterator(values_.begin()),
                       std::make_move_iterator(values_.end()));
    values_.clear();
    return all;
  }

  // No value enters any more; what waits can still be taken.
  void Close() ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(mutex_);
    closed_ = true;
    changed_.NotifyAll();
  }

  size_t size() const ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(mutex_);
    return values_.size();
  }
  size_t capacity() const { return capacity_; }

 private:
  std::optional<T> PopLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (values_.empty()) return std::nullopt;
    std::optional<T> value(std::move(values_.front()));
    values_.pop_front();
    return value;
  }

  const size_t capacity_;
  mutable Mutex mutex_;
  CondVar changed_;
  std::deque<T> values_ ABSL_GUARDED_BY(mutex_);
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace kvist

#endif  // KVIST_COMMON_BASE_BOUNDED_QUEUE_H_
