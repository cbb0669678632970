#include "common/base/status.h"

#include <array>
#include <charconv>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "common/base/check.h"

namespace kvist {
namespace {

constexpr std::array<std::pair<ErrorReason, std::string_view>, 6> kReasonNames = {{
    {ErrorReason::kUnspecified, "UNSPECIFIED"},
    {ErrorReason::kQuota, "QUOTA"},
    {ErrorReason::kOverload, "OVERLOAD"},
    {ErrorReason::kNoWorker, "NO_WORKER"},
    {ErrorReason::kDraining, "DRAINING"},
    {ErrorReason::kNoManager, "NO_MANAGER"},
}};

constexpr char kReasonUrl[] = "kvist/reason";
constexpr char kFieldUrl[] = "kvist/field";
constexpr char kRetryUrl[] = "kvist/retry_after_ms";
constexpr char kResumeUrl[] = "kvist/resume_index";

int64_t IntPayload(const absl::Status& status, const char* url, int64_t otherwise) {
  const auto payload = status.GetPayload(url);
  if (!payload.has_value()) return otherwise;
  const std::string text(*payload);
  int64_t value = otherwise;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

}  // namespace

std::string_view ErrorReasonName(ErrorReason reason) {
  for (const auto& [value, name] : kReasonNames) {
    if (value == reason) return name;
  }
  return "UNSPECIFIED";
}

ErrorReason ErrorReasonFromName(std::string_view name) {
  for (const auto& [value, known] : kReasonNames) {
    if (known == name) return value;
  }
  return ErrorReason::kUnspecified;
}

absl::Status WithDetails(absl::Status status, const ErrorDetails& details) {
  KVIST_CHECK(!status.ok());
  if (details.reason != ErrorReason::kUnspecified) {
    status.SetPayload(kReasonUrl, absl::Cord(ToAbsl(ErrorReasonName(details.reason))));
  }
  if (!details.field.empty()) status.SetPayload(kFieldUrl, absl::Cord(details.field));
  if (details.retry_after_ms > 0) {
    status.SetPayload(kRetryUrl, absl::Cord(absl::StrCat(details.retry_after_ms)));
  }
  if (details.resume_index >= 0) {
    status.SetPayload(kResumeUrl, absl::Cord(absl::StrCat(details.resume_index)));
  }
  return status;
}

ErrorDetails DetailsOf(const absl::Status& status) {
  ErrorDetails details;
  if (const auto reason = status.GetPayload(kReasonUrl); reason.has_value()) {
    details.reason = ErrorReasonFromName(std::string(*reason));
  }
  if (const auto field = status.GetPayload(kFieldUrl); field.has_value()) {
    details.field = std::string(*field);
  }
  details.retry_after_ms = IntPayload(status, kRetryUrl, 0);
  details.resume_index = IntPayload(status, kResumeUrl, -1);
  return details;
}

absl::Status InvalidField(std::string_view field, std::string_view problem) {
  return WithDetails(absl::InvalidArgumentError(absl::StrCat(ToAbsl(field), ": ", ToAbsl(problem))),
                     {.field = std::string(field)});
}

absl::Status FieldOutOfRange(std::string_view field, std::string_view problem) {
  return WithDetails(absl::OutOfRangeError(absl::StrCat(ToAbsl(field), ": ", ToAbsl(problem))),
                     {.field = std::string(field)});
}

absl::Status Overloaded(std::string_view what, int64_t retry_after_ms) {
  return WithDetails(absl::ResourceExhaustedError(ToAbsl(what)),
                     {.reason = ErrorReason::kOverload, .retry_after_ms = retry_after_ms});
}

absl::Status Unavailable(ErrorReason reason, std::string_view message) {
  return WithDetails(absl::UnavailableError(ToAbsl(message)), {.reason = reason});
}

}  // namespace kvist
