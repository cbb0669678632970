// The sessions' turns that this frontend is running, so that deleting a session ends its turn.
#ifndef KVIST_SERVICES_FRONTEND_RUNNING_TURNS_H_
#define KVIST_SERVICES_FRONTEND_RUNNING_TURNS_H_

#include <atomic>
#include <memory>
#include <string>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "common/base/mutex.h"

namespace kvist::services {

// Thread-safe; must outlive its entries.
class RunningTurns {
 public:
  // Lists a turn as long as it lives. Thread-compatible.
  class Entry {
   public:
    Entry(RunningTurns* table, std::string session, std::string turn)
        : table_(table), key_(std::move(session), std::move(turn)) {
      MutexLock lock(table_->mutex_);
      table_->turns_[key_] = &cancelled_;
    }
    ~Entry() {
      MutexLock lock(table_->mutex_);
      table_->turns_.erase(key_);
    }
    Entry(const Entry&) = delete;
    Entry& operator=(const Entry&) = delete;

    bool cancelled() const { return cancelled_.load(std::memory_order_relaxed); }

   private:
    RunningTurns* const table_;
    const std::pair<std::string, std::string> key_;
    std::atomic<bool> cancelled_ = false;
  };

  // Cancels the session's turns.
  void CancelSession(const std::string& session) ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(mutex_);
    for (auto& [key, cancelled] : turns_) {
      if (key.first == session) cancelled->store(true, std::memory_order_relaxed);
    }
  }
  bool Contains(const std::string& session, const std::string& turn) const
      ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(mutex_);
    return turns_.contains(std::pair(session, turn));
  }

 private:
  mutable Mutex mutex_;
  absl::flat_hash_map<std::pair<std::string, std::string>, std::atomic<bool>*> turns_
      ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvist::services

#endif  // KVIST_SERVICES_FRONTEND_RUNNING_TURNS_H_
