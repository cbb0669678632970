// What this frontend has sent to each worker and is not done: added to the loads that workers
// report.
#ifndef KVIST_SERVICES_FRONTEND_IN_FLIGHT_H_
#define KVIST_SERVICES_FRONTEND_IN_FLIGHT_H_

#include <cstdint>
#include <list>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "common/base/clock.h"
#include "common/base/mutex.h"

namespace kvist::services {

// Thread-safe; must outlive its places.
class InFlight {
  struct Sent {
    std::string worker_id;
    MonotonicTime at;
    int64_t prefill_tokens = 0;  // 0 once its first token is here
  };

 public:
  // One attempt on one worker; forgotten when destroyed. Move-only. Thread-compatible.
  class Place {
   public:
    Place() = default;
    Place(Place&& other) noexcept;
    Place& operator=(Place&& other) noexcept;
    ~Place();
    // The prompt is computed: it weighs only as a running sequence from now on.
    void PrefillDone();

   private:
    friend class InFlight;
    void Leave();
    InFlight* table_ = nullptr;
    std::list<Sent>::iterator sent_;
  };

  Place Enter(std::string worker_id, int64_t prefill_tokens, MonotonicTime now)
      ABSL_LOCKS_EXCLUDED(mutex_);

  struct Sum {
    int64_t prefill_tokens = 0;
    int64_t sequences = 0;
    int64_t recent_prefill_tokens = 0;  // sent after `since`
    int64_t recent_sequences = 0;
  };
  // By worker.
  Sum SumOf(const std::string& worker_id, MonotonicTime since) const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  mutable Mutex mutex_;
  // One list by worker: a frontend runs at most some hundred requests.
  absl::flat_hash_map<std::string, std::list<Sent>> by_worker_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvist::services

#endif  // KVIST_SERVICES_FRONTEND_IN_FLIGHT_H_
