// How many requests run at once. One more is refused with advice when to come back.
#ifndef KVIST_SERVICES_FRONTEND_ADMISSION_H_
#define KVIST_SERVICES_FRONTEND_ADMISSION_H_

#include <cstdint>
#include <utility>

#include "absl/status/statusor.h"
#include "common/base/mutex.h"

namespace kvist::services {

// Counts requests in progress. Thread-safe; must outlive its tickets.
class Admission {
 public:
  // A request's place; gives it back when destroyed. Move-only. Thread-compatible.
  class Ticket {
   public:
    Ticket(Ticket&& other) noexcept
        : admission_(std::exchange(other.admission_, nullptr)), places_(other.places_) {}
    Ticket& operator=(Ticket&&) = delete;
    ~Ticket() {
      if (admission_ != nullptr) admission_->GiveBack(places_);
    }

   private:
    friend class Admission;
    Ticket(Admission* admission, int32_t places) : admission_(admission), places_(places) {}
    Admission* admission_;
    int32_t places_;
  };

  // REQUIRES: max_running > 0.
  explicit Admission(int32_t max_running) : max_running_(max_running) {}

  // Takes so many places: one for each sample of a request. RESOURCE_EXHAUSTED (kOverload, retry
  // delay) if they are not free; OUT_OF_RANGE (samples) if there never are so many; UNAVAILABLE
  // (kDraining) after Close. REQUIRES: places > 0.
  absl::StatusOr<Ticket> Admit(int32_t places) ABSL_LOCKS_EXCLUDED(mutex_);
  // Nobody is admitted any more; who is in goes on.
  void Close() ABSL_LOCKS_EXCLUDED(mutex_);
  int32_t running() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void GiveBack(int32_t places) ABSL_LOCKS_EXCLUDED(mutex_);

  const int32_t max_running_;
  mutable Mutex mutex_;
  int32_t running_ ABSL_GUARDED_BY(mutex_) = 0;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace kvist::services

#endif  // KVIST_SERVICES_FRONTEND_ADMISSION_H_
