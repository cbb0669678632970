#include "services/worker/request_codec.h"

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "common/text/limits.h"
#include "services/runtime/cache_params.h"
#include "services/runtime/id_syntax.h"
#include "services/worker/limits.h"
#include "worker/kv/layout.h"

namespace kvist::services {
namespace {

// The engine has room for both kinds of stop ids together.
static_assert(text::kMaxStopIds <= worker::kMaxModelStopIds);

absl::Status CheckLengths(const v1::WorkerGenerateRequest& message, int64_t context_tokens) {
  if (message.prompt_ids().empty()) return InvalidField("prompt_ids", "must not be empty");
  const auto beyond = [&](const char* field, int64_t tokens) {
    return FieldOutOfRange(field,
                           absl::StrCat(tokens, " tokens; the context holds ", context_tokens));
  };
  if (message.prompt_ids_size() > context_tokens) {
    return beyond("prompt_ids", message.prompt_ids_size());
  }
  if (message.generated_ids_size() > context_tokens) {
    return beyond("generated_ids", message.generated_ids_size());
  }
  if (message.tenant_salt().size() != kTenantSaltBytes) {
    return InvalidField("tenant_salt", "must have 32 bytes");
  }
  return absl::OkStatus();
}

absl::Status CheckIds(const v1::WorkerGenerateRequest& message) {
  KVIST_RETURN_IF_ERROR(CheckId("request_id", message.request_id(), EmptyId::kRefused));
  KVIST_RETURN_IF_ERROR(CheckId("fork_of", message.fork_of(), EmptyId::kAllowed));
  KVIST_RETURN_IF_ERROR(CheckId("session_id", message.session_id(), EmptyId::kAllowed));
  return CheckId("tenant_id", message.tenant_id(), EmptyId::kAllowed);
}

absl::StatusOr<worker::SamplingOptions> ParseSampling(const v1::SamplingParams& params) {
  // Frontends draw it, so that a replay elsewhere continues the same random numbers.
  if (!params.has_seed()) return InvalidField("sampling.seed", "must be set");
  worker::SamplingOptions options;
  options.seed = params.seed();
  if (params.has_temperature()) options.temperature = params.temperature();
  if (params.has_top_k()) options.top_k = params.top_k();
  if (params.has_top_p()) options.top_p = params.top_p();
  if (params.has_min_p()) options.min_p = params.min_p();
  if (params.has_repetition_penalty()) options.repetition_penalty = params.repetition_penalty();
  if (params.has_presence_penalty()) options.presence_penalty = params.presence_penalty();
  if (params.has_frequency_penalty()) options.frequency_penalty = params.frequency_penalty();
  if (params.has_sample_index()) {
    if (params.sample_index() < 0) {
      return InvalidField("sampling.sample_index", "must not be negative");
    }
    options.sample_index = static_cast<uint32_t>(params.sample_index());
  }
  if (params.has_logprobs()) {
    if (params.logprobs() < 0) return InvalidField("sampling.logprobs", "must not be negative");
    options.logprobs = params.logprobs();
  }
  return options;
}

absl::StatusOr<worker::StopOptions> ParseStop(const v1::StopParams& params,
                                              std::span<const int32_t> model_stop_ids) {
  if (params.stop_strings_size() > 0) {
    return InvalidField("stop.stop_strings", "are the frontend's business");
  }
  if (static_cast<size_t>(params.stop_ids_size()) > worker::kMaxRequestedStopIds) {
    return InvalidField("stop.stop_ids", absl::StrCat("at most ", worker::kMaxRequestedStopIds));
  }
  worker::StopOptions options;
  if (params.has_max_new_tokens()) options.max_new_tokens = params.max_new_tokens();
  if (params.has_min_new_tokens()) options.min_new_tokens = params.min_new_tokens();
  options.stop_ids.assign(params.stop_ids().begin(), params.stop_ids().end());
  if (!params.ignore_model_stops()) {
    options.stop_ids.insert(options.stop_ids.end(), model_stop_ids.begin(), model_stop_ids.end());
  }
  std::sort(options.stop_ids.begin(), options.stop_ids.end());
  options.stop_ids.erase(std::unique(options.stop_ids.begin(), options.stop_ids.end()),
                         options.stop_ids.end());
  return options;
}

}  // namespace

absl::StatusOr<worker::CacheOptions> ParseCache(const v1::CacheParams& params,
                                                int64_t context_tokens) {
  KVIST_RETURN_IF_ERROR(ValidateCacheParams(params, context_tokens));
  worker::CacheOptions options;
  if (params.allocation() == v1::CacheParams::STATIC) {
    options.allocation = worker::Allocation::kStatic;
  } else if (params.allocation() == v1::CacheParams::NONE) {
    options.allocation = worker::Allocation::kNone;
  }
  options.attention = SpanFromProto(params.attention());
  if (params.offload() == v1::CacheParams::DISK) options.offload = worker::OffloadTier::kDisk;
  if (params.offload() == v1::CacheParams::HOST) options.offload = worker::OffloadTier::kHost;
  if (!params.kv_format().empty()) {
    auto format = worker::KvFormatFromName(params.kv_format());
    if (!format.ok()) {
      return InvalidField("cache.kv_format", std::string(format.status().message()));
    }
    options.kv_format = *format;
  }
  return options;
}

absl::StatusOr<worker::GenerateRequest> ParseGenerateRequest(
    const v1::WorkerGenerateRequest& message, const RequestFacts& facts) {
  KVIST_RETURN_IF_ERROR(CheckIds(message));
  KVIST_RETURN_IF_ERROR(CheckLengths(message, facts.context_tokens));
  worker::GenerateRequest request;
  request.id = RequestId(message.request_id());
  request.fork_of = RequestId(message.fork_of());
  request.session = SessionId(message.session_id());
  request.tenant = TenantId(message.tenant_id());
  request.tenant_salt = message.tenant_salt();
  request.attempt = message.attempt();
  request.prompt_ids.assign(message.prompt_ids().begin(), message.prompt_ids().end());
  request.generated_ids.assign(message.generated_ids().begin(), message.generated_ids().end());
  KVIST_ASSIGN_OR_RETURN(request.sampling, ParseSampling(message.sampling()));
  KVIST_ASSIGN_OR_RETURN(request.stop, ParseStop(message.stop(), facts.model_stop_ids));
  KVIST_ASSIGN_OR_RETURN(request.cache, ParseCache(message.cache(), facts.context_tokens));
  request.priority = message.priority();
  return request;
}

std::optional<MonotonicTime> MonotonicDeadline(std::chrono::system_clock::time_point deadline,
                                               const Clock& clock) {
  // gRPC's "no deadline" is a point in time that no addition reaches without overflow.
  const auto left = deadline - clock.WallNow();
  if (left > std::chrono::hours(24 * 365)) return std::nullopt;
  return clock.Now() + std::chrono::duration_cast<MonotonicTime::duration>(left);
}

void FillToken(const worker::TokenOutput& token, v1::Token* message) {
  message->set_index(token.index);
  message->set_id(token.id);
  if (token.logprob.has_value()) message->set_logprob(*token.logprob);
  for (const worker::TokenLogprob& top : token.top_logprobs) {
    v1::TokenLogprob* out = message->add_top_logprobs();
    out->set_id(top.id);
    out->set_logprob(top.logprob);
  }
}

void FillFinished(const worker::FinishInfo& info, v1::WorkerFinished* message) {
  switch (info.reason) {
    case worker::FinishReason::kStop:
      message->set_reason(v1::STOP);
      break;
    case worker::FinishReason::kLength:
      message->set_reason(v1::LENGTH);
      break;
    case worker::FinishReason::kCancelled:
      message->set_reason(v1::CANCELLED);
      break;
    case worker::FinishReason::kDeadline:
      message->set_reason(v1::DEADLINE);
      break;
    case worker::FinishReason::kError:
      message->set_reason(v1::ERROR);
      break;
  }
  v1::Usage* usage = message->mutable_usage();
  usage->set_prompt_tokens(info.prompt_tokens);
  usage->set_cached_tokens(info.cached_tokens);
  usage->set_generated_tokens(info.generated_tokens);
  v1::Timings* timings = message->mutable_timings();
  timings->set_queue_ms(info.queue_seconds * 1e3);
  timings->set_time_to_first_token_ms((info.queue_seconds + info.prefill_seconds) * 1e3);
  if (const auto fresh = info.prompt_tokens - info.cached_tokens;
      fresh > 0 && info.prefill_seconds > 0) {
    timings->set_prefill_tokens_per_second(static_cast<double>(fresh) / info.prefill_seconds);
  }
  if (info.generated_tokens > 1 && info.decode_seconds > 0) {
    timings->set_decode_tokens_per_second(static_cast<double>(info.generated_tokens - 1) /
                                          info.decode_seconds);
  }
  timings->set_total_ms((info.queue_seconds + info.prefill_seconds + info.decode_seconds) * 1e3);
  message->set_preemptions(info.preemptions);
}

}  // namespace kvist::services
