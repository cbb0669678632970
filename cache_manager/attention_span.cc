#include "cache_manager/attention_span.h"

#include <algorithm>

#include "common/base/status.h"

namespace kvist::cache_manager {

absl::Status ValidateAttention(const AttentionSpan& span, int64_t context_tokens) {
  const auto [window, sinks] = span;
  if (window != 0 && (window < kLeastWindowTokens || window > context_tokens)) {
    return InvalidField("cache.attention.window_tokens",
                        "must be 0 (all) or from " + std::to_string(kLeastWindowTokens) + " to " +
                            std::to_string(context_tokens) + "; it is " + std::to_string(window));
  }
  if (sinks == 0) return absl::OkStatus();
  if (sinks < 0) return InvalidField("cache.attention.sink_tokens", "must not be negative");
  if (window == 0) {
    return InvalidField("cache.attention.sink_tokens",
                        "needs a window: without one every token is seen");
  }
  if (sinks >= window) {
    return InvalidField("cache.attention.sink_tokens", "must be below the window of " +
                                                           std::to_string(window) + "; it is " +
                                                           std::to_string(sinks));
  }
  return absl::OkStatus();
}

AttentionSpan SpanInLayers(int64_t layer_window, const AttentionSpan& asked) {
  if (layer_window == 0) return asked;
  if (asked.window_tokens == 0) return {.window_tokens = layer_window};
  return {.window_tokens = std::min(layer_window, asked.window_tokens)};
}

std::string AttentionText(const AttentionSpan& span) {
  if (span.window_tokens == 0) return "full";
  return "window=" + std::to_string(span.window_tokens) +
         ",sinks=" + std::to_string(span.sink_tokens);
}

}  // namespace kvist::cache_manager
