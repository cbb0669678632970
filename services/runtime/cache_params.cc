#include "services/runtime/cache_params.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/status.h"

namespace kvist::services {
namespace {

using cache_manager::AttentionSpan;

struct Preset {
  std::string_view name;
  v1::CacheParams::Allocation allocation;
  AttentionSpan attention;
  std::string_view kv_format;
  v1::CacheParams::Offload offload = v1::CacheParams::OFFLOAD_UNSPECIFIED;
};

// A window that holds a few screens of text, and as many sinks as the paper on them found enough.
constexpr AttentionSpan kSlidingWindow{.window_tokens = 1024, .sink_tokens = 4};

constexpr Preset kPresets[] = {
    {"paged", v1::CacheParams::PAGED, {}, ""},
    {"dynamic", v1::CacheParams::PAGED, {}, ""},
    {"static", v1::CacheParams::STATIC, {}, ""},
    {"sliding_window", v1::CacheParams::PAGED, kSlidingWindow, ""},
    {"quantized", v1::CacheParams::PAGED, {}, "q8"},
    {"offloaded", v1::CacheParams::PAGED, {}, "", v1::CacheParams::DISK},
    {"none", v1::CacheParams::NONE, {}, "", v1::CacheParams::OFF},
};

const Preset* FindPreset(std::string_view name) {
  for (const Preset& preset : kPresets) {
    if (preset.name == name) return &preset;
  }
  return nullptr;
}

}  // namespace

std::vector<std::string> CachePresetNames() {
  std::vector<std::string> names;
  for (const Preset& preset : kPresets) names.emplace_back(preset.name);
  return names;
}

absl::StatusOr<v1::CacheParams> CacheParamsOf(const CacheWish& wish, int64_t context_tokens) {
  v1::CacheParams params;
  if (!wish.preset.empty()) {
    const Preset* preset = FindPreset(wish.preset);
    if (preset == nullptr) {
      return InvalidField("cache", absl::StrCat("unknown preset \"", wish.preset, "\"; there are ",
                                                absl::StrJoin(CachePresetNames(), ", ")));
    }
    if (preset->attention.window_tokens > 0 && wish.window_tokens == 0) {
      return InvalidField("cache.attention.window_tokens",
                          absl::StrCat(wish.preset, " needs a window"));
    }
    params.set_allocation(preset->allocation);
    params.set_kv_format(std::string(preset->kv_format));
    params.set_offload(preset->offload);
    AttentionSpan span = preset->attention;
    span.window_tokens = std::min(span.window_tokens, context_tokens);
    *params.mutable_attention() = ToProto(span);
  }
  if (wish.window_tokens.has_value()) {
    params.mutable_attention()->set_window_tokens(*wish.window_tokens);
  }
  if (wish.sink_tokens.has_value()) {
    params.mutable_attention()->set_sink_tokens(*wish.sink_tokens);
  }
  if (!wish.kv_format.empty()) params.set_kv_format(wish.kv_format);
  if (!wish.offload.empty()) {
    params.set_offload(OffloadFromName(wish.offload));
    if (params.offload() == v1::CacheParams::OFFLOAD_UNSPECIFIED) {
      return InvalidField("cache.offload", absl::StrCat("unknown value \"", wish.offload,
                                                        "\"; there are off, disk, host"));
    }
  }
  return params;
}

absl::Status ValidateCacheParams(const v1::CacheParams& params, int64_t context_tokens) {
  if (!v1::CacheParams::Allocation_IsValid(params.allocation())) {
    return InvalidField("cache.allocation", absl::StrCat("unknown value ", params.allocation()));
  }
  if (!v1::CacheParams::Offload_IsValid(params.offload())) {
    return InvalidField("cache.offload", absl::StrCat("unknown value ", params.offload()));
  }
  const bool offloads =
      params.offload() == v1::CacheParams::DISK || params.offload() == v1::CacheParams::HOST;
  if (offloads && params.allocation() == v1::CacheParams::NONE) {
    return InvalidField("cache.offload", "a cache of allocation none keeps nothing to offload");
  }
  return cache_manager::ValidateAttention(SpanFromProto(params.attention()), context_tokens);
}

AttentionSpan SpanFromProto(const v1::AttentionParams& params) {
  return {.window_tokens = params.window_tokens(), .sink_tokens = params.sink_tokens()};
}

v1::AttentionParams ToProto(const AttentionSpan& span) {
  v1::AttentionParams params;
  params.set_window_tokens(span.window_tokens);
  params.set_sink_tokens(span.sink_tokens);
  return params;
}

std::string_view AllocationName(v1::CacheParams::Allocation allocation) {
  switch (allocation) {
    case v1::CacheParams::PAGED:
      return "paged";
    case v1::CacheParams::STATIC:
      return "static";
    case v1::CacheParams::NONE:
      return "none";
    default:
      return "";
  }
}

v1::CacheParams::Allocation AllocationFromName(std::string_view name) {
  for (const auto allocation :
       {v1::CacheParams::PAGED, v1::CacheParams::STATIC, v1::CacheParams::NONE}) {
    if (AllocationName(allocation) == name) return allocation;
  }
  return v1::CacheParams::ALLOCATION_UNSPECIFIED;
}

std::string_view OffloadName(v1::CacheParams::Offload offload) {
  switch (offload) {
    case v1::CacheParams::OFF:
      return "off";
    case v1::CacheParams::DISK:
      return "disk";
    case v1::CacheParams::HOST:
      return "host";
    default:
      return "";
  }
}

v1::CacheParams::Offload OffloadFromName(std::string_view name) {
  for (const auto offload : {v1::CacheParams::OFF, v1::CacheParams::DISK, v1::CacheParams::HOST}) {
    if (OffloadName(offload) == name) return offload;
  }
  return v1::CacheParams::OFFLOAD_UNSPECIFIED;
}

}  // namespace kvist::services
