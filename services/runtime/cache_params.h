// CacheParams of the wire: the presets that people know by name, the check, and the plain span.
#ifndef KVIST_SERVICES_RUNTIME_CACHE_PARAMS_H_
#define KVIST_SERVICES_RUNTIME_CACHE_PARAMS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cache_manager/attention_span.h"
#include "cache_manager/limits.h"
#include "proto/kvist/v1/types.pb.h"

namespace kvist::services {

// A cache as people ask for it: a preset, refined by what is set beside it.
struct CacheWish {
  std::string preset;  // empty: none; only what is set is said, the rest is the session's
  std::optional<int64_t> window_tokens;
  std::optional<int64_t> sink_tokens;
  std::string kv_format;  // empty: the preset's
  std::string offload;    // "off", "disk", "host"; empty: the preset's
};

// "paged", "dynamic", "static", "sliding_window", "quantized", "offloaded", "none".
std::vector<std::string> CachePresetNames();

// The fields that a wish stands for, unset what it does not say. A preset says allocation and
// attention, its window no wider than `context_tokens`, the model's where it is known; `quantized`
// says the format too, `offloaded` and `none` where blocks go. INVALID_ARGUMENT naming the field
// for an unknown preset or offload or a sliding window of 0; everything else is checked where the
// request goes.
absl::StatusOr<v1::CacheParams> CacheParamsOf(
    const CacheWish& wish, int64_t context_tokens = cache_manager::kMaxWindowTokens);

// INVALID_ARGUMENT naming "cache.allocation", "cache.offload" (none keeps nothing to offload) or as
// cache_manager::ValidateAttention. The format is not looked at: only who knows the workers can
// tell.
absl::Status ValidateCacheParams(const v1::CacheParams& params, int64_t context_tokens);

// Unset fields are 0: full attention.
cache_manager::AttentionSpan SpanFromProto(const v1::AttentionParams& params);
v1::AttentionParams ToProto(const cache_manager::AttentionSpan& span);

// "paged", "static", "none"; empty for ALLOCATION_UNSPECIFIED.
std::string_view AllocationName(v1::CacheParams::Allocation allocation);
// ALLOCATION_UNSPECIFIED for other names.
v1::CacheParams::Allocation AllocationFromName(std::string_view name);

// "off", "disk", "host"; empty for OFFLOAD_UNSPECIFIED.
std::string_view OffloadName(v1::CacheParams::Offload offload);
// OFFLOAD_UNSPECIFIED for other names.
v1::CacheParams::Offload OffloadFromName(std::string_view name);

}  // namespace kvist::services

#endif  // KVIST_SERVICES_RUNTIME_CACHE_PARAMS_H_
