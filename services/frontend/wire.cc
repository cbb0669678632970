#include "services/frontend/wire.h"

#include <algorithm>
#include <variant>

#include "services/frontend/limits.h"
#include "services/runtime/cache_params.h"

namespace kvist::services {
namespace {

Prompt PromptFromWire(const v1::GenerateRequest& request) {
  switch (request.prompt_case()) {
    case v1::GenerateRequest::kText:
      return TextPrompt{request.text().text()};
    case v1::GenerateRequest::kIds:
      return IdsPrompt{{request.ids().ids().begin(), request.ids().ids().end()}};
    case v1::GenerateRequest::kChat: {
      ChatPrompt chat;
      for (const v1::ChatMessage& message : request.chat().messages()) {
        chat.messages.push_back({.role = message.role(), .content = message.content()});
      }
      return chat;
    }
    case v1::GenerateRequest::PROMPT_NOT_SET:
      break;
  }
  return std::monostate{};
}

StopChoice StopFromWire(const v1::StopParams& wire) {
  StopChoice stop;
  if (wire.has_max_new_tokens()) stop.max_new_tokens = wire.max_new_tokens();
  if (wire.has_min_new_tokens()) stop.min_new_tokens = wire.min_new_tokens();
  stop.stop_ids.assign(wire.stop_ids().begin(), wire.stop_ids().end());
  stop.stop_strings.assign(wire.stop_strings().begin(), wire.stop_strings().end());
  stop.ignore_model_stops = wire.ignore_model_stops();
  return stop;
}

CacheChoice CacheFromWire(const v1::CacheParams& wire) {
  CacheChoice cache;
  cache.allocation = wire.allocation();
  const v1::AttentionParams& attention = wire.attention();
  if (attention.has_window_tokens()) cache.window_tokens = attention.window_tokens();
  if (attention.has_sink_tokens()) cache.sink_tokens = attention.sink_tokens();
  // Said by clients that know no unset window: full attention.
  if (wire.has_attention() && !cache.window_tokens.has_value() && !cache.sink_tokens.has_value()) {
    cache.window_tokens = 0;
  }
  cache.kv_format = wire.kv_format();
  cache.offload = wire.offload();
  return cache;
}

}  // namespace

SamplingChoice FromWire(const v1::SamplingParams& wire) {
  SamplingChoice sampling;
  if (wire.has_temperature()) sampling.temperature = wire.temperature();
  if (wire.has_top_k()) sampling.top_k = wire.top_k();
  if (wire.has_top_p()) sampling.top_p = wire.top_p();
  if (wire.has_min_p()) sampling.min_p = wire.min_p();
  if (wire.has_repetition_penalty()) sampling.repetition_penalty = wire.repetition_penalty();
  if (wire.has_presence_penalty()) sampling.presence_penalty = wire.presence_penalty();
  if (wire.has_frequency_penalty()) sampling.frequency_penalty = wire.frequency_penalty();
  if (wire.has_seed()) sampling.seed = wire.seed();
  if (wire.has_logprobs()) sampling.logprobs = wire.logprobs();
  if (wire.has_sample_index()) sampling.sample_index = wire.sample_index();
  return sampling;
}

InferenceRequest FromWire(const v1::GenerateRequest& request, const Principal& principal) {
  InferenceRequest plain;
  plain.principal = principal;
  plain.id = RequestId(request.request_id());
  plain.model = request.model();
  plain.prompt = PromptFromWire(request);
  plain.session = SessionId(request.session_id());
  plain.sampling = FromWire(request.sampling());
  plain.stop = StopFromWire(request.stop());
  plain.cache = CacheFromWire(request.cache());
  plain.priority = request.priority();
  if (request.has_samples()) plain.samples = request.samples();
  return plain;
}

v1::SamplingParams ResolveSampling(const InferenceRequest& request,
                                   const SamplingChoice& model_defaults, uint64_t seed) {
  const SamplingChoice& choice = request.sampling;
  const bool chat = std::holds_alternative<ChatPrompt>(request.prompt);
  const SamplingChoice defaults = chat ? model_defaults : SamplingChoice();
  v1::SamplingParams wire;
  wire.set_temperature(choice.temperature.value_or(
      defaults.temperature.value_or(chat ? kDefaultChatTemperature : 0.0f)));
  wire.set_top_k(choice.top_k.value_or(defaults.top_k.value_or(0)));
  wire.set_top_p(choice.top_p.value_or(defaults.top_p.value_or(chat ? kDefaultChatTopP : 1.0f)));
  wire.set_min_p(choice.min_p.value_or(defaults.min_p.value_or(0.0f)));
  wire.set_repetition_penalty(choice.repetition_penalty.value_or(1.0f));
  wire.set_presence_penalty(choice.presence_penalty.value_or(0.0f));
  wire.set_frequency_penalty(choice.frequency_penalty.value_or(0.0f));
  wire.set_seed(seed);
  wire.set_sample_index(choice.sample_index.value_or(0));
  if (choice.logprobs.has_value()) wire.set_logprobs(*choice.logprobs);
  return wire;
}

v1::StopParams ResolveStop(const StopChoice& stop, int64_t room_tokens) {
  v1::StopParams wire;
  const int64_t most = std::min(stop.max_new_tokens.value_or(kDefaultMaxNewTokens), room_tokens);
  wire.set_max_new_tokens(most);
  wire.set_min_new_tokens(std::min(stop.min_new_tokens.value_or(0), most));
  wire.mutable_stop_ids()->Add(stop.stop_ids.begin(), stop.stop_ids.end());
  wire.set_ignore_model_stops(stop.ignore_model_stops);
  return wire;
}

v1::CacheParams ResolveCache(const CacheChoice& cache, const v1::CacheParams& of_session) {
  v1::CacheParams wire = of_session;
  if (cache.allocation != v1::CacheParams::ALLOCATION_UNSPECIFIED) {
    wire.set_allocation(static_cast<v1::CacheParams::Allocation>(cache.allocation));
  }
  if (wire.allocation() == v1::CacheParams::ALLOCATION_UNSPECIFIED) {
    wire.set_allocation(v1::CacheParams::PAGED);
  }
  cache_manager::AttentionSpan span = SpanFromProto(of_session.attention());
  // Nothing is beyond a window that is none.
  if (cache.window_tokens == 0) span.sink_tokens = 0;
  span.window_tokens = cache.window_tokens.value_or(span.window_tokens);
  span.sink_tokens = cache.sink_tokens.value_or(span.sink_tokens);
  *wire.mutable_attention() = ToProto(span);
  if (!cache.kv_format.empty()) wire.set_kv_format(cache.kv_format);
  if (cache.offload != v1::CacheParams::OFFLOAD_UNSPECIFIED) {
    wire.set_offload(static_cast<v1::CacheParams::Offload>(cache.offload));
  }
  return wire;
}

}  // namespace kvist::services
