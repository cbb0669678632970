// What the frontend checks of a request before it does anything with it. The roles behind it check
// again what comes to them (worker/engine/request_limits.h, services/cache_manager/turn_book.h):
// they trust no frontend.
#ifndef KVIST_SERVICES_FRONTEND_VALIDATE_H_
#define KVIST_SERVICES_FRONTEND_VALIDATE_H_

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "proto/kvist/v1/types.pb.h"
#include "services/frontend/request.h"

namespace kvist::services {

// What a model's workers serve, or one of them: what a request is checked against once its model is
// known.
struct ModelLimits {
  int64_t vocab = 0;
  int64_t context_tokens = 0;
  int32_t block_tokens = 16;
  std::vector<std::string> kv_formats;                  // the default first
  std::vector<v1::CacheParams::Offload> offload_tiers;  // DISK, HOST

  friend bool operator==(const ModelLimits&, const ModelLimits&) = default;
};

// Everything that needs no model: sizes, ranges, NaN, UTF-8, unknown enum values. INVALID_ARGUMENT
// with the field named; OUT_OF_RANGE for an empty prompt or one beyond the limit of bytes, messages
// or ids.
absl::Status ValidateRequest(const InferenceRequest& request);
// A model's own defaults, as data of another process: ranges, NaN, top_k within the vocabulary.
// INVALID_ARGUMENT with the field named.
absl::Status ValidateSamplingDefaults(const SamplingChoice& defaults, int64_t vocab);
// What needs the model: ids and top_k within the vocabulary, the KV format served, the window
// within the context. REQUIRES: ValidateRequest was OK.
absl::Status ValidateForModel(const InferenceRequest& request, const ModelLimits& model);
// Empty, or one that the model's workers have.
absl::Status ValidateKvFormat(const std::string& format, const ModelLimits& model);
// OFF, unspecified, or a tier that the model's workers have.
absl::Status ValidateOffload(v1::CacheParams::Offload offload, const ModelLimits& model);
// A request's cache with what its session said: allocation and attention without contradiction,
// the window within the context, format and tier served. INVALID_ARGUMENT with the field named.
absl::Status ValidateCache(const v1::CacheParams& cache, const ModelLimits& model);
// A prompt as ids, a session's history included: OUT_OF_RANGE (field "prompt") if it is empty or
// leaves no room for one new token in the context.
absl::Status ValidatePromptLength(int64_t prompt_tokens, const ModelLimits& model);

// At most 64 of [A-Za-z0-9._-], at least one. INVALID_ARGUMENT naming `field`.
absl::Status ValidateId(std::string_view field, std::string_view id);
// As ValidateId; names that the frontend draws for implicit sessions are refused.
absl::Status ValidateNewSessionId(std::string_view field, std::string_view id);
// Seconds since last use: 1 .. a year; unset is fine.
absl::Status ValidateSessionTtl(std::optional<int64_t> ttl_seconds);
// UTF-8 of at most 1 MiB; may be empty.
absl::Status ValidateText(std::string_view field, std::string_view value);
// Each in [0, vocab).
absl::Status ValidateIds(std::string_view field, std::span<const int32_t> ids, int64_t vocab);

}  // namespace kvist::services

#endif  // KVIST_SERVICES_FRONTEND_VALIDATE_H_
