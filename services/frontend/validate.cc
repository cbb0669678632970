#include "services/frontend/validate.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cache_manager/limits.h"
#include "common/base/status.h"
#include "common/text/utf8.h"
#include "services/frontend/limits.h"
#include "services/frontend/wire.h"
#include "services/runtime/cache_params.h"
#include "services/runtime/id_syntax.h"

namespace kvist::services {
namespace {

constexpr int kFirstRole = 1;  // system
constexpr int kLastRole = 3;   // assistant

// A float's allowed range. `low_open`: the lower end itself is not allowed.
struct Range {
  float low;
  float high;
  bool low_open = false;
};

absl::Status CheckFloat(std::string_view field, std::optional<float> value, const Range& range) {
  if (!value.has_value()) return absl::OkStatus();
  const bool above = range.low_open ? *value > range.low : *value >= range.low;
  if (std::isfinite(*value) && above && *value <= range.high) return absl::OkStatus();
  return InvalidField(
      field, absl::StrCat("must be ", range.low_open ? "above " : "from ", range.low,
                          range.low_open ? ", up to " : " to ", range.high, "; it is ", *value));
}

template <typename T>
absl::Status CheckInteger(std::string_view field, T value, T low, T high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return InvalidField(field, absl::StrCat("must be from ", low, " to ", high, "; it is ", value));
}

absl::Status CheckSampling(const SamplingChoice& sampling) {
  KVIST_RETURN_IF_ERROR(
      CheckFloat("sampling.temperature", sampling.temperature, {0.0f, kMaxTemperature}));
  KVIST_RETURN_IF_ERROR(CheckFloat("sampling.top_p", sampling.top_p, {0.0f, 1.0f, true}));
  KVIST_RETURN_IF_ERROR(CheckFloat("sampling.min_p", sampling.min_p, {0.0f, 1.0f}));
  KVIST_RETURN_IF_ERROR(CheckFloat("sampling.repetition_penalty", sampling.repetition_penalty,
                                   {0.0f, kMaxRepetitionPenalty, true}));
  const Range penalty{-kMaxAbsolutePenalty, kMaxAbsolutePenalty};
  KVIST_RETURN_IF_ERROR(
      CheckFloat("sampling.presence_penalty", sampling.presence_penalty, penalty));
  KVIST_RETURN_IF_ERROR(
      CheckFloat("sampling.frequency_penalty", sampling.frequency_penalty, penalty));
  if (sampling.top_k.value_or(0) < 0) {
    return InvalidField("sampling.top_k",
                        absl::StrCat("must not be negative; it is ", *sampling.top_k));
  }
  KVIST_RETURN_IF_ERROR(CheckInteger<int32_t>(
      "sampling.sample_index", sampling.sample_index.value_or(0), 0, kMaxSampleIndex));
  return CheckInteger<int32_t>("sampling.logprobs", sampling.logprobs.value_or(0), 0,
                               kMaxTopLogprobs);
}

absl::Status CheckTopK(const SamplingChoice& sampling, int64_t vocab) {
  if (sampling.top_k.value_or(0) <= vocab) return absl::OkStatus();
  return InvalidField("sampling.top_k", absl::StrCat("must be from 0 to ", vocab,
                                                     " (the vocabulary); it is ", *sampling.top_k));
}

absl::Status CheckStop(const StopChoice& stop) {
  const int64_t most = stop.max_new_tokens.value_or(kDefaultMaxNewTokens);
  if (most < 1) {
    return InvalidField("stop.max_new_tokens", absl::StrCat("must be at least 1; it is ", most));
  }
  KVIST_RETURN_IF_ERROR(
      CheckInteger<int64_t>("stop.min_new_tokens", stop.min_new_tokens.value_or(0), 0, most));
  if (stop.stop_ids.size() > static_cast<size_t>(kMaxRequestStopIds)) {
    return InvalidField("stop.stop_ids",
                        absl::StrCat("at most ", kMaxRequestStopIds, " are allowed"));
  }
  if (stop.stop_strings.size() > static_cast<size_t>(kMaxStopStrings)) {
    return InvalidField("stop.stop_strings",
                        absl::StrCat("at most ", kMaxStopStrings, " are allowed"));
  }
  for (const std::string& stop_string : stop.stop_strings) {
    if (stop_string.empty() || stop_string.size() > kMaxStopStringBytes) {
      return InvalidField("stop.stop_strings",
                          absl::StrCat("each must have 1 to ", kMaxStopStringBytes,
                                       " bytes; one has ", stop_string.size()));
    }
    if (!text::IsValidUtf8(stop_string)) return InvalidField("stop.stop_strings", "must be UTF-8");
  }
  return absl::OkStatus();
}

absl::Status CheckChat(const ChatPrompt& chat) {
  if (chat.messages.empty()) return FieldOutOfRange("prompt.chat", "there is no message");
  if (chat.messages.size() > kMaxChatMessages) {
    return FieldOutOfRange("prompt.chat",
                           absl::StrCat("at most ", kMaxChatMessages,
                                        " messages are allowed; there are ", chat.messages.size()));
  }
  size_t bytes = 0;
  for (const ChatTurn& message : chat.messages) {
    if (message.role < kFirstRole || message.role > kLastRole) {
      return InvalidField("prompt.chat.role", "must be system, user or assistant");
    }
    bytes += message.content.size();
    if (bytes > kMaxTextBytes) {
      return FieldOutOfRange("prompt.chat",
                             absl::StrCat("at most ", kMaxTextBytes, " bytes are allowed"));
    }
    if (!text::IsValidUtf8(message.content))
      return InvalidField("prompt.chat.content", "must be UTF-8");
  }
  return absl::OkStatus();
}

absl::Status CheckSamples(const InferenceRequest& request) {
  KVIST_RETURN_IF_ERROR(CheckInteger<int32_t>("samples", request.samples, 1, kMaxSamples));
  if (request.samples == 1) return absl::OkStatus();
  if (!request.session.empty()) {
    return InvalidField("samples", "must be 1 in a session: its history takes one answer");
  }
  if (request.id.value().size() <= kMaxSampledRequestIdBytes) return absl::OkStatus();
  return InvalidField("request_id", absl::StrCat("must have at most ", kMaxSampledRequestIdBytes,
                                                 " bytes with several samples"));
}

absl::Status CheckPrompt(const Prompt& prompt) {
  if (const auto* raw = std::get_if<TextPrompt>(&prompt)) {
    if (raw->text.empty()) return FieldOutOfRange("prompt.text", "the prompt is empty");
    return ValidateText("prompt.text", raw->text);
  }
  if (const auto* ids = std::get_if<IdsPrompt>(&prompt)) {
    if (ids->ids.empty()) return FieldOutOfRange("prompt.ids", "the prompt is empty");
    if (ids->ids.size() > static_cast<size_t>(kMaxPromptIds)) {
      return FieldOutOfRange("prompt.ids",
                             absl::StrCat("at most ", kMaxPromptIds, " ids are allowed"));
    }
    return absl::OkStatus();
  }
  if (const auto* chat = std::get_if<ChatPrompt>(&prompt)) return CheckChat(*chat);
  return FieldOutOfRange("prompt", "there is none: set text, ids or chat");
}

// What the request says of its cache. Sinks alone refine the window of a session that is not known
// yet: taken to be the widest.
absl::Status CheckOwnCache(const InferenceRequest& request, int64_t context_tokens) {
  v1::CacheParams of_session;
  if (!request.session.empty() && !request.cache.window_tokens.has_value() &&
      request.cache.sink_tokens.has_value()) {
    of_session.mutable_attention()->set_window_tokens(context_tokens);
  }
  return ValidateCacheParams(ResolveCache(request.cache, of_session), context_tokens);
}

}  // namespace

absl::Status ValidateId(std::string_view field, std::string_view id) {
  return CheckId(field, id, EmptyId::kRefused);
}

absl::Status ValidateNewSessionId(std::string_view field, std::string_view id) {
  KVIST_RETURN_IF_ERROR(ValidateId(field, id));
  if (!absl::StartsWith(ToAbsl(id), ToAbsl(kImplicitSessionPrefix))) return absl::OkStatus();
  return InvalidField(field, "names that begin with \"implicit-\" are given by the server");
}

absl::Status ValidateSessionTtl(std::optional<int64_t> ttl_seconds) {
  return CheckInteger<int64_t>("ttl_seconds", ttl_seconds.value_or(1), 1, kMaxSessionTtlSeconds);
}

absl::Status ValidateText(std::string_view field, std::string_view value) {
  if (value.size() > kMaxTextBytes) {
    return FieldOutOfRange(field, absl::StrCat("at most ", kMaxTextBytes,
                                               " bytes are allowed; it has ", value.size()));
  }
  return text::IsValidUtf8(value) ? absl::OkStatus() : InvalidField(field, "must be UTF-8");
}

absl::Status ValidateIds(std::string_view field, std::span<const int32_t> ids, int64_t vocab) {
  for (const int32_t id : ids) {
    if (id < 0 || id >= vocab) {
      return InvalidField(field,
                          absl::StrCat("token id ", id, " is not in the vocabulary of ", vocab));
    }
  }
  return absl::OkStatus();
}

absl::Status ValidateRequest(const InferenceRequest& request) {
  if (!request.id.empty()) KVIST_RETURN_IF_ERROR(ValidateId("request_id", request.id.value()));
  if (!request.session.empty()) {
    KVIST_RETURN_IF_ERROR(ValidateId("session_id", request.session.value()));
  }
  if (request.model.size() > kMaxModelNameBytes || !text::IsValidUtf8(request.model)) {
    return InvalidField("model",
                        absl::StrCat("must be UTF-8 of at most ", kMaxModelNameBytes, " bytes"));
  }
  KVIST_RETURN_IF_ERROR(CheckSamples(request));
  KVIST_RETURN_IF_ERROR(CheckPrompt(request.prompt));
  KVIST_RETURN_IF_ERROR(CheckSampling(request.sampling));
  KVIST_RETURN_IF_ERROR(CheckStop(request.stop));
  KVIST_RETURN_IF_ERROR(CheckOwnCache(request, cache_manager::kMaxWindowTokens));
  return CheckInteger<int32_t>("priority", request.priority, -kMaxAbsolutePriority,
                               kMaxAbsolutePriority);
}

absl::Status ValidateSamplingDefaults(const SamplingChoice& defaults, int64_t vocab) {
  KVIST_RETURN_IF_ERROR(CheckSampling(defaults));
  return CheckTopK(defaults, vocab);
}

absl::Status ValidateForModel(const InferenceRequest& request, const ModelLimits& model) {
  if (const auto* ids = std::get_if<IdsPrompt>(&request.prompt)) {
    KVIST_RETURN_IF_ERROR(ValidateIds("prompt.ids", ids->ids, model.vocab));
  }
  KVIST_RETURN_IF_ERROR(ValidateIds("stop.stop_ids", request.stop.stop_ids, model.vocab));
  KVIST_RETURN_IF_ERROR(CheckTopK(request.sampling, model.vocab));
  KVIST_RETURN_IF_ERROR(CheckOwnCache(request, model.context_tokens));
  KVIST_RETURN_IF_ERROR(ValidateKvFormat(request.cache.kv_format, model));
  return ValidateOffload(static_cast<v1::CacheParams::Offload>(request.cache.offload), model);
}

absl::Status ValidateCache(const v1::CacheParams& cache, const ModelLimits& model) {
  KVIST_RETURN_IF_ERROR(ValidateCacheParams(cache, model.context_tokens));
  KVIST_RETURN_IF_ERROR(ValidateKvFormat(cache.kv_format(), model));
  return ValidateOffload(cache.offload(), model);
}

absl::Status ValidateKvFormat(const std::string& format, const ModelLimits& model) {
  const auto& served = model.kv_formats;
  if (!format.empty() && std::find(served.begin(), served.end(), format) == served.end()) {
    return InvalidField("cache.kv_format",
                        absl::StrCat("is not served; these are: ", absl::StrJoin(served, ", ")));
  }
  return absl::OkStatus();
}

absl::Status ValidateOffload(v1::CacheParams::Offload offload, const ModelLimits& model) {
  if (offload != v1::CacheParams::DISK && offload != v1::CacheParams::HOST) return absl::OkStatus();
  std::vector<std::string> served = {std::string(OffloadName(v1::CacheParams::OFF))};
  for (const v1::CacheParams::Offload tier : model.offload_tiers) {
    if (tier == offload) return absl::OkStatus();
    served.emplace_back(OffloadName(tier));
  }
  return InvalidField(
      "cache.offload",
      absl::StrCat(ToAbsl(OffloadName(offload)),
                   offload == v1::CacheParams::DISK
                       ? " is not served: no worker has --offload-dir"
                       : " is not served: the workers' KV pools are in the host's memory already",
                   "; there is ", absl::StrJoin(served, ", ")));
}

absl::Status ValidatePromptLength(int64_t prompt_tokens, const ModelLimits& model) {
  if (prompt_tokens < 1) return FieldOutOfRange("prompt", "the prompt is empty");
  if (prompt_tokens < model.context_tokens) return absl::OkStatus();
  return FieldOutOfRange(
      "prompt",
      absl::StrCat("it has ", prompt_tokens, " tokens, history included; the context holds ",
                   model.context_tokens, ", one of them for the answer"));
}

}  // namespace kvist::services
