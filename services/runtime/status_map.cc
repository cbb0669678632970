#include "services/runtime/status_map.h"

#include <algorithm>
#include <atomic>
#include <charconv>
#include <random>
#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/logging.h"
#include "common/base/status.h"

namespace kvist::services {
namespace {

constexpr char kReasonKey[] = "kvist-reason";
constexpr char kFieldKey[] = "kvist-field";
constexpr char kRetryKey[] = "kvist-retry-after-ms";
constexpr char kResumeKey[] = "kvist-resume-index";

// More than 8 KB of metadata closes the whole connection (CONTROL_PLANE.md, section 6), and the
// message travels in it percent-encoded, three bytes for one.
constexpr size_t kMaxMessageBytes = 1024;
constexpr size_t kMaxFieldBytes = 128;

// gRPC aborts the process on metadata values that are not printable ASCII.
bool IsPrintableAscii(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c >= 0x20 && c < 0x7f; });
}

// Tells one internal error from another in client reports; unpredictable only so that ids of
// restarts do not meet.
std::string NextOpaqueId() {
  static const uint64_t process_id = [] {
    std::random_device device;
    return (uint64_t{device()} << 32) | device();
  }();
  static std::atomic<uint64_t> count{0};
  return absl::StrFormat("%016x-%d", process_id, ++count);
}

void AddDetails(const ErrorDetails& details, grpc::ServerContextBase& context) {
  if (details.reason != ErrorReason::kUnspecified) {
    context.AddTrailingMetadata(kReasonKey, std::string(ErrorReasonName(details.reason)));
  }
  if (!details.field.empty() && details.field.size() <= kMaxFieldBytes &&
      IsPrintableAscii(details.field)) {
    context.AddTrailingMetadata(kFieldKey, details.field);
  }
  if (details.retry_after_ms > 0) {
    context.AddTrailingMetadata(kRetryKey, absl::StrCat(details.retry_after_ms));
  }
  if (details.resume_index >= 0) {
    context.AddTrailingMetadata(kResumeKey, absl::StrCat(details.resume_index));
  }
}

std::string_view FindMetadata(const std::multimap<grpc::string_ref, grpc::string_ref>& metadata,
                              const char* key) {
  const auto it = metadata.find(key);
  if (it == metadata.end()) return {};
  return {it->second.data(), it->second.size()};
}

int64_t ParseInt(std::string_view text, int64_t otherwise) {
  int64_t value = otherwise;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

}  // namespace

grpc::Status ToGrpc(const absl::Status& status, grpc::ServerContextBase* context) {
  if (status.ok()) return grpc::Status::OK;
  if (status.code() == absl::StatusCode::kInternal || status.code() == absl::StatusCode::kUnknown) {
    const std::string id = NextOpaqueId();
    LogError("internal error {}: {}", id, std::string(status.message()));
    return {grpc::StatusCode::INTERNAL, absl::StrCat("internal error ", id)};
  }
  if (context != nullptr) AddDetails(DetailsOf(status), *context);
  return {static_cast<grpc::StatusCode>(status.raw_code()),
          std::string(status.message().substr(0, kMaxMessageBytes))};
}

absl::Status FromGrpc(const grpc::Status& status, const grpc::ClientContext& context) {
  if (status.ok()) return absl::OkStatus();
  const auto& metadata = context.GetServerTrailingMetadata();
  ErrorDetails details;
  details.reason = ErrorReasonFromName(FindMetadata(metadata, kReasonKey));
  details.field = std::string(FindMetadata(metadata, kFieldKey));
  details.retry_after_ms = ParseInt(FindMetadata(metadata, kRetryKey), 0);
  details.resume_index = ParseInt(FindMetadata(metadata, kResumeKey), -1);
  return WithDetails(
      absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message()),
      details);
}

}  // namespace kvist::services
