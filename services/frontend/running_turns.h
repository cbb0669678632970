// The sessions' turns that this frontend is running, so that deleting a session ends its turn.
#ifndef KVIST_SERVICES_FRONTEND_RUNNING_TURNS_H_
#define KVIST_SERVICES_FRONTEND_RUNNING_TURNS_H_

#include <atomic>
#include <memory>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "common/base/ids.h"
#include "common/base/mutex.h"

namespace kvist::services {

// Thread-safe; must outlive its entries.
class RunningTurns {
 public:
  using Key = std::pair<SessionId, TurnId>;

  // Lists a turn as long as it lives. Thread-compatible.
  class Entry {
   public:
    ~Entry() {
      MutexLock lock(table_->mutex_);
      if (listed_) table_->turns_.erase(key_);
    }
    Entry(const Entry&) = delete;
    Entry& operator=(const Entry&) = delete;

    bool cancelled() const { return cancelled_.load(std::memory_order_relaxed); }

   private:
    friend class RunningTurns;
    Entry(RunningTurns* table, Key key) : table_(table), key_(std::move(key)) {}
    RunningTurns* const table_;
    const Key key_;
    std::atomic<bool> cancelled_ = false;
    bool listed_ = false;
  };

  // Cancels the session's turns.
  void CancelSession(const SessionId& session) ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(mutex_);
    for (auto& [key, cancelled] : turns_) {
      if (key.first == session) cancelled->store(true, std::memory_order_relaxed);
    }
  }
  // nullptr if that turn is listed: whoever got the entry runs it.
  std::unique_ptr<Entry> TryEnter(const SessionId& session, const TurnId& turn)
      ABSL_LOCKS_EXCLUDED(mutex_) {
    std::unique_ptr<Entry> entry(new Entry(this, {session, turn}));
    bool entered = false;
    {
      MutexLock lock(mutex_);
      entered = turns_.try_emplace(entry->key_, &entry->cancelled_).second;
      entry->listed_ = entered;
    }
    return entered ? std::move(entry) : nullptr;
  }
  std::vector<Key> All() const ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(mutex_);
    std::vector<Key> all;
    for (const auto& [key, cancelled] : turns_) all.push_back(key);
    return all;
  }

 private:
  mutable Mutex mutex_;
  absl::flat_hash_map<Key, std::atomic<bool>*> turns_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvist::services

#endif  // KVIST_SERVICES_FRONTEND_RUNNING_TURNS_H_
