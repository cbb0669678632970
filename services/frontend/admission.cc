#include "services/frontend/admission.h"

#include "absl/strings/str_cat.h"
#include "common/base/status.h"

namespace kvist::services {
namespace {

// About the time in which one of many running requests ends.
constexpr int64_t kRetryAfterMs = 1000;

}  // namespace

absl::StatusOr<Admission::Ticket> Admission::Admit() {
  MutexLock lock(mutex_);
  if (closed_) return Unavailable(ErrorReason::kDraining, "this frontend is shutting down");
  if (running_ >= max_running_) {
    return Overloaded(absl::StrCat("all ", max_running_, " places for requests are taken"),
                      kRetryAfterMs);
  }
  ++running_;
  return Ticket(this);
}

void Admission::Close() {
  MutexLock lock(mutex_);
  closed_ = true;
}

int32_t Admission::running() const {
  MutexLock lock(mutex_);
  return running_;
}

void Admission::GiveBack() {
  MutexLock lock(mutex_);
  --running_;
}

}  // namespace kvist::services
