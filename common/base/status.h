// Status vocabulary of every layer: which code means what to whom, and the details a client can act
// on.
//
//   INVALID_ARGUMENT     a field is wrong; fixing the request is the only way on
//   OUT_OF_RANGE         a prompt or index beyond a limit of the model or the session
//   NOT_FOUND            no such session, model or worker (or not visible to the caller)
//   ABORTED              lost a compare-and-set; reload and retry
//   RESOURCE_EXHAUSTED   system or tenant full; retry after ErrorDetails::retry_after_ms
//   UNAVAILABLE          no worker, draining, no manager; retry
//   DEADLINE_EXCEEDED    the caller's deadline passed; tokens so far were delivered
//   CANCELLED            the caller went away
//   DATA_LOSS            a file is damaged
//   INTERNAL             a broken invariant: a bug
#ifndef KVIST_COMMON_BASE_STATUS_H_
#define KVIST_COMMON_BASE_STATUS_H_

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace kvist {

// Machine-readable reason beside the code. Values are part of the wire contract.
enum class ErrorReason {
  kUnspecified,
  kQuota,      // RESOURCE_EXHAUSTED: the tenant's budget
  kOverload,   // RESOURCE_EXHAUSTED: queues or pools are full
  kNoWorker,   // UNAVAILABLE: no ready worker
  kDraining,   // UNAVAILABLE: the server is going away
  kNoManager,  // UNAVAILABLE: a session turn needs the cache manager or its store
};

std::string_view ErrorReasonName(ErrorReason reason);
// Returns kUnspecified for unknown names.
ErrorReason ErrorReasonFromName(std::string_view name);

// What a client can act on besides the message. Travels as a status payload.
struct ErrorDetails {
  ErrorReason reason = ErrorReason::kUnspecified;
  std::string field;           // name of the offending field, empty if none
  int64_t retry_after_ms = 0;  // 0: no advice
  int64_t resume_index = -1;   // ABORTED mid-stream: first token index not delivered; -1: none
};

// Returns `status` with `details` attached. REQUIRES: !status.ok().
absl::Status WithDetails(absl::Status status, const ErrorDetails& details);
// Returns the details attached to `status`, or defaults.
ErrorDetails DetailsOf(const absl::Status& status);

// INVALID_ARGUMENT "<field>: <problem>", with ErrorDetails::field set.
absl::Status InvalidField(std::string_view field, std::string_view problem);
// OUT_OF_RANGE "<field>: <problem>", with ErrorDetails::field set.
absl::Status FieldOutOfRange(std::string_view field, std::string_view problem);
// RESOURCE_EXHAUSTED with reason kOverload and a retry delay.
absl::Status Overloaded(std::string_view what, int64_t retry_after_ms);
// UNAVAILABLE with `reason`.
absl::Status Unavailable(ErrorReason reason, std::string_view message);

// Debian's Abseil has no conversion from std::string_view where it matters.
inline absl::string_view ToAbsl(std::string_view s) { return {s.data(), s.size()}; }

}  // namespace kvist

// Returns from the enclosing function if `expr` (absl::Status) is not OK.
#define KVIST_RETURN_IF_ERROR(expr)                                                     \
  do {                                                                                  \
    if (absl::Status kvist_status_ = (expr); !kvist_status_.ok()) return kvist_status_; \
  } while (false)

// KVIST_ASSIGN_OR_RETURN(auto x, F()): declares x from F()'s StatusOr, or returns its status.
#define KVIST_ASSIGN_OR_RETURN(lhs, expr) \
  KVIST_ASSIGN_OR_RETURN_IMPL_(KVIST_CONCAT_(kvist_statusor_, __LINE__), lhs, expr)
#define KVIST_ASSIGN_OR_RETURN_IMPL_(var, lhs, expr) \
  auto var = (expr);                                 \
  if (!var.ok()) return std::move(var).status();     \
  lhs = std::move(var).value()
#define KVIST_CONCAT_(a, b) KVIST_CONCAT_INNER_(a, b)
#define KVIST_CONCAT_INNER_(a, b) a##b

#endif  // KVIST_COMMON_BASE_STATUS_H_
