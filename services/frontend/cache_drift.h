// Predicted against actual cached tokens, by worker: whether the cache manager's picture of a
// worker can be true (CONTROL_PLANE.md, section 2).
#ifndef KVIST_SERVICES_FRONTEND_CACHE_DRIFT_H_
#define KVIST_SERVICES_FRONTEND_CACHE_DRIFT_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "common/base/mutex.h"
#include "services/frontend/relay.h"

namespace kvist::services {

// Judges each worker by its latest requests. A false alarm (blocks were evicted between the promise
// and the request) costs the worker one heartbeat. Thread-safe.
class CacheDrift {
 public:
  // Requests of one worker that are looked at together, and the fewest that tell anything.
  static constexpr size_t kWindowRequests = 32;
  static constexpr size_t kLeastRequests = 8;
  // Below this share of found among promised tokens a worker's mirror is doubted.
  static constexpr int64_t kLeastPercent = 90;

  struct Outcome {
    int64_t promised_tokens = 0;  // by the manager; above 0
    int64_t found_tokens = 0;     // by the worker
  };
  // A request ran on that life of the worker. What was found beyond the promise makes good for
  // nothing. True: the worker is doubted from now on, and its window begins anew.
  bool Record(const std::string& worker_id, uint64_t incarnation, const Outcome& outcome)
      ABSL_LOCKS_EXCLUDED(mutex_);

  // Those doubted, to be told to the manager and forgotten here.
  WorkerLives TakeDoubted() ABSL_LOCKS_EXCLUDED(mutex_);
  // They could not be told.
  void PutBack(const WorkerLives& doubted) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Window {
    uint64_t incarnation = 0;
    std::deque<Outcome> recent;
    Outcome sum;
  };
  Mutex mutex_;
  absl::flat_hash_map<std::string, Window> by_worker_ ABSL_GUARDED_BY(mutex_);
  WorkerLives doubted_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvist::services

#endif  // KVIST_SERVICES_FRONTEND_CACHE_DRIFT_H_
