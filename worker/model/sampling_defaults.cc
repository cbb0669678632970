#include "worker/model/sampling_defaults.h"

#include <string_view>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"

namespace kvist::worker {
namespace {

struct Range {
  double low = 0;
  double high = 1;
  bool low_open = false;  // low itself is outside
};

absl::StatusOr<std::optional<float>> ReadFloat(const gguf::File& file, std::string_view key,
                                               const Range& range) {
  if (file.FindValue(key) == nullptr) return std::nullopt;
  KVIST_ASSIGN_OR_RETURN(const double value, file.GetFloat(key));
  const bool inside = value >= range.low && value <= range.high;  // NaN never is
  // A small double may be 0 as a float.
  if (!inside || (range.low_open && static_cast<float>(value) <= range.low)) {
    return InvalidField(key, absl::StrCat("must be ", range.low_open ? "above " : "from ",
                                          range.low, ", up to ", range.high, "; it is ", value));
  }
  return static_cast<float>(value);
}

}  // namespace

absl::StatusOr<SamplingDefaults> ReadSamplingDefaults(const gguf::File& file, int64_t vocab) {
  SamplingDefaults defaults;
  KVIST_ASSIGN_OR_RETURN(defaults.temperature,
                         ReadFloat(file, "general.sampling.temp", {.low = 0, .high = 100}));
  KVIST_ASSIGN_OR_RETURN(defaults.top_p,
                         ReadFloat(file, "general.sampling.top_p", {.high = 1, .low_open = true}));
  KVIST_ASSIGN_OR_RETURN(defaults.min_p, ReadFloat(file, "general.sampling.min_p", {.high = 1}));
  constexpr std::string_view kTopK = "general.sampling.top_k";
  if (file.FindValue(kTopK) == nullptr) return defaults;
  KVIST_ASSIGN_OR_RETURN(const int64_t top_k, file.GetInt(kTopK));
  if (top_k < 0 || top_k > vocab) {
    return InvalidField(
        kTopK, absl::StrCat("must be from 0 to ", vocab, " (the vocabulary); it is ", top_k));
  }
  defaults.top_k = static_cast<int32_t>(top_k);
  return defaults;
}

}  // namespace kvist::worker
