// Which positions a token sees: part of what a block's content means, so part of its name.
#ifndef KVIST_CACHE_MANAGER_ATTENTION_SPAN_H_
#define KVIST_CACHE_MANAGER_ATTENTION_SPAN_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace kvist::cache_manager {

// The token at position p sees p - window_tokens + 1 .. p and 0 .. sink_tokens - 1. Positions are
// absolute: they do not move when others fall out of the window. Without sinks, quality breaks down
// as soon as the first tokens are gone (Xiao et al., Efficient Streaming Language Models with
// Attention Sinks, 2023).
struct AttentionSpan {
  int64_t window_tokens = 0;  // itself included; 0: all
  int64_t sink_tokens = 0;    // only with a window

  friend bool operator==(const AttentionSpan&, const AttentionSpan&) = default;
};

// A window narrower than one page of softmax would save nothing.
inline constexpr int64_t kLeastWindowTokens = 16;

// INVALID_ARGUMENT naming "cache.attention.window_tokens" or "cache.attention.sink_tokens":
// negative, a window below kLeastWindowTokens or above `context_tokens`, sinks without a window or
// as long as it.
absl::Status ValidateAttention(const AttentionSpan& span, int64_t context_tokens);

// What a sequence with `asked` sees in layers whose own window is `layer_window` (0: none). Where
// the model has a window of its own the narrower of the two holds and there are no sinks: those
// layers were trained without them.
AttentionSpan SpanInLayers(int64_t layer_window, const AttentionSpan& asked);

// KeyScope::attention: "full", "window=512,sinks=4".
std::string AttentionText(const AttentionSpan& span);

}  // namespace kvist::cache_manager

#endif  // KVIST_CACHE_MANAGER_ATTENTION_SPAN_H_
