#include "services/frontend/admission.h"

#include "absl/strings/str_cat.h"
#include "common/base/status.h"

namespace kvist::services {
namespace {

// About the time in which one of many running requests ends.
constexpr int64_t kRetryAfterMs = 1000;

}  // namespace

absl::StatusOr<Admission::Ticket> Admission::Admit(int32_t places) {
  if (places > max_running_) {
    return FieldOutOfRange("samples", absl::StrCat("this server runs ", max_running_, " at once"));
  }
  MutexLock lock(mutex_);
  if (closed_) return Unavailable(ErrorReason::kDraining, "this frontend is shutting down");
  if (running_ > max_running_ - places) {
    return Overloaded(absl::StrCat(max_running_ - running_, " of ", max_running_,
                                   " places for requests are free, and not ", places),
                      kRetryAfterMs);
  }
  running_ += places;
  return Ticket(this, places);
}

void Admission::Close() {
  MutexLock lock(mutex_);
  closed_ = true;
}

int32_t Admission::running() const {
  MutexLock lock(mutex_);
  return running_;
}

void Admission::GiveBack(int32_t places) {
  MutexLock lock(mutex_);
  running_ -= places;
}

}  // namespace kvist::services
