// One request as the frontend sees it, whatever door it came through: plain data, checked in
// validate.h.
#ifndef KVIST_SERVICES_FRONTEND_REQUEST_H_
#define KVIST_SERVICES_FRONTEND_REQUEST_H_

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "cache_manager/attention_span.h"
#include "common/base/ids.h"

namespace kvist::services {

// Who asks. Made at the edge from the caller's credential; everybody is tenant "default" while
// there are none.
struct Principal {
  TenantId tenant{"default"};
};

struct TextPrompt {
  std::string text;
};
struct IdsPrompt {
  std::vector<int32_t> ids;
};
// `role` as on the wire: 1 system, 2 user, 3 assistant; anything else is refused.
struct ChatTurn {
  int role = 0;
  std::string content;
};
struct ChatPrompt {
  std::vector<ChatTurn> messages;
};
// monostate: the request has none.
using Prompt = std::variant<std::monostate, TextPrompt, IdsPrompt, ChatPrompt>;

// Unset: the server's default for the kind of prompt.
struct SamplingChoice {
  std::optional<float> temperature;
  std::optional<int32_t> top_k;
  std::optional<float> top_p;
  std::optional<float> min_p;
  std::optional<float> repetition_penalty;
  std::optional<float> presence_penalty;
  std::optional<float> frequency_penalty;
  std::optional<uint64_t> seed;
  std::optional<int32_t> logprobs;
  std::optional<int32_t> sample_index;
};

struct StopChoice {
  std::optional<int64_t> max_new_tokens;
  std::optional<int64_t> min_new_tokens;
  std::vector<int32_t> stop_ids;
  std::vector<std::string> stop_strings;
  bool ignore_model_stops = false;
};

// `allocation` as on the wire: 0 unspecified, 1 paged, 2 static, 3 none; so is `offload`: 1 off, 2
// disk, 3 host. What is not said is the session's, or the server's default.
struct CacheChoice {
  int allocation = 0;
  std::optional<int64_t> window_tokens;  // 0: all, without the session's sinks
  std::optional<int64_t> sink_tokens;
  std::string kv_format;  // empty: the session's, or the worker's first
  int offload = 0;
};

struct InferenceRequest {
  Principal principal;
  RequestId id;  // empty: to be drawn
  std::string model;
  Prompt prompt;
  SessionId session;  // empty: none
  SamplingChoice sampling;
  StopChoice stop;
  CacheChoice cache;
  int32_t priority = 0;
  int32_t samples = 1;
};

}  // namespace kvist::services

#endif  // KVIST_SERVICES_FRONTEND_REQUEST_H_
