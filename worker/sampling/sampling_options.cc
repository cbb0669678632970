#include "worker/sampling/sampling_options.h"

#include <cmath>
#include <string>
#include <string_view>

#include "common/base/status.h"

namespace kvist::worker {
namespace {

// `problem` unless low <= value <= high; NaN is outside every range.
absl::Status CheckRange(std::string_view field, double value, double low, double high,
                        std::string_view problem) {
  if (value >= low && value <= high) return absl::OkStatus();
  return InvalidField(field, problem);
}

// As CheckRange, with `low` itself outside.
absl::Status CheckAbove(std::string_view field, double value, double low, double high,
                        std::string_view problem) {
  if (value > low && value <= high) return absl::OkStatus();
  return InvalidField(field, problem);
}

}  // namespace

absl::Status Validate(const SamplingOptions& options, int64_t vocab) {
  KVIST_RETURN_IF_ERROR(
      CheckRange("temperature", options.temperature, 0, 100, "must be between 0 and 100"));
  if (options.top_k < 0 || options.top_k > vocab) {
    return InvalidField(
        "top_k", "must be 0 (off) or between 1 and the vocabulary's " + std::to_string(vocab));
  }
  KVIST_RETURN_IF_ERROR(CheckAbove("top_p", options.top_p, 0, 1, "must be above 0 and at most 1"));
  KVIST_RETURN_IF_ERROR(CheckRange("min_p", options.min_p, 0, 1, "must be between 0 and 1"));
  KVIST_RETURN_IF_ERROR(CheckAbove("repetition_penalty", options.repetition_penalty, 0, 100,
                                   "must be above 0 and at most 100"));
  KVIST_RETURN_IF_ERROR(
      CheckRange("presence_penalty", options.presence_penalty, -2, 2, "must be between -2 and 2"));
  KVIST_RETURN_IF_ERROR(CheckRange("frequency_penalty", options.frequency_penalty, -2, 2,
                                   "must be between -2 and 2"));
  if (options.logprobs < -1 || options.logprobs > kMaxLogprobs) {
    return InvalidField("logprobs",
                        "must be -1 (none) or between 0 and " + std::to_string(kMaxLogprobs));
  }
  return absl::OkStatus();
}

absl::Status Validate(const StopOptions& options, int64_t vocab) {
  if (options.max_new_tokens < 1) return InvalidField("max_new_tokens", "must be at least 1");
  if (options.min_new_tokens < 0 || options.min_new_tokens > options.max_new_tokens) {
    return InvalidField("min_new_tokens", "must be between 0 and max_new_tokens");
  }
  if (options.stop_ids.size() > kMaxStopIds) {
    return InvalidField("stop_ids", "at most " + std::to_string(kMaxStopIds) + " are allowed");
  }
  for (const int32_t id : options.stop_ids) {
    if (id < 0 || id >= vocab) {
      return InvalidField("stop_ids", "the id " + std::to_string(id) +
                                          " is not in the vocabulary of " + std::to_string(vocab));
    }
  }
  return absl::OkStatus();
}

}  // namespace kvist::worker
