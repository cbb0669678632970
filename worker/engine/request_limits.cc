#include "worker/engine/request_limits.h"

#include <algorithm>
#include <span>
#include <string>

#include "common/base/status.h"
#include "worker/kv/layout.h"

namespace kvist::worker {
namespace {

absl::Status CheckIds(std::string_view field, std::span<const int32_t> ids, int64_t vocab) {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 0 && ids[i] < vocab) continue;
    return InvalidField(field, "the id " + std::to_string(ids[i]) + " at index " +
                                   std::to_string(i) + " is not in the vocabulary of " +
                                   std::to_string(vocab));
  }
  return absl::OkStatus();
}

// Sets the format where it is not given.
absl::StatusOr<const KvCache*> PickFormat(const RequestLimits& limits, CacheOptions* cache) {
  if (!cache->kv_format.has_value()) cache->kv_format = limits.formats[0]->format();
  std::string served;
  for (const KvCache* format : limits.formats) {
    if (format->format() == *cache->kv_format) return format;
    served += (served.empty() ? "" : ", ") + std::string(KvFormatName(format->format()));
  }
  return InvalidField("kv_format", std::string(KvFormatName(*cache->kv_format)) +
                                       " is not served here; there is " + served);
}

absl::Status CheckOffload(const RequestLimits& limits, const CacheOptions& cache) {
  switch (cache.offload) {
    case OffloadTier::kOff:
      return absl::OkStatus();
    case OffloadTier::kHost:
      return InvalidField("cache.offload",
                          std::string("host is not served here: the KV pools are in the host's "
                                      "memory already; there is off") +
                              (limits.disk ? ", disk" : ""));
    case OffloadTier::kDisk:
      break;
  }
  if (!limits.disk) {
    return InvalidField("cache.offload",
                        "disk is not served here: the worker has no --offload-dir; there is off");
  }
  if (cache.allocation != Allocation::kNone) return absl::OkStatus();
  return InvalidField("cache.offload", "a cache of allocation none keeps nothing to offload");
}

// REQUIRES: max_new_tokens is cut.
absl::Status CheckPromise(const KvCache& format, const GenerateRequest& request) {
  if (request.cache.allocation != Allocation::kStatic) return absl::OkStatus();
  const int64_t stored = MostStoredTokens(request);
  const int64_t promisable = format.PromisableTokens(request.cache.attention);
  if (stored <= promisable) return absl::OkStatus();
  return FieldOutOfRange("cache.allocation",
                         "a static cache for the prompt and max_new_tokens would store " +
                             std::to_string(stored) + " tokens; " + std::to_string(promisable) +
                             " can be promised here");
}

}  // namespace

absl::Status PrepareRequest(const RequestLimits& limits, GenerateRequest* request) {
  if (request->id.empty()) return InvalidField("request_id", "must not be empty");
  if (request->prompt_ids.empty()) return InvalidField("prompt_ids", "must not be empty");
  KVIST_RETURN_IF_ERROR(CheckIds("prompt_ids", request->prompt_ids, limits.vocab));
  KVIST_RETURN_IF_ERROR(CheckIds("generated_ids", request->generated_ids, limits.vocab));
  KVIST_RETURN_IF_ERROR(Validate(request->sampling, limits.vocab));
  KVIST_RETURN_IF_ERROR(Validate(request->stop, limits.vocab));
  if (request->priority < -kMaxPriority || request->priority > kMaxPriority) {
    return InvalidField("priority", "must be between -100 and 100");
  }
  KVIST_RETURN_IF_ERROR(
      cache_manager::ValidateAttention(request->cache.attention, limits.context_tokens));
  KVIST_ASSIGN_OR_RETURN(const KvCache* const format, PickFormat(limits, &request->cache));
  const absl::Status offload = CheckOffload(limits, request->cache);
  // The worker that it moves from had the tier: an answer that has begun goes on without.
  const bool moved = request->attempt > 1;
  if (!offload.ok() && !moved) return offload;
  if (!offload.ok()) request->cache.offload = OffloadTier::kOff;
  const int64_t held = format->CapacityTokens(request->cache.attention);
  const int64_t prompt = static_cast<int64_t>(request->prompt_ids.size());
  if (prompt >= limits.context_tokens) {
    return FieldOutOfRange("prompt_ids", std::to_string(prompt) + " tokens; the context holds " +
                                             std::to_string(limits.context_tokens) +
                                             ", of which one must be left for an answer");
  }
  if (prompt > held) {
    return FieldOutOfRange("prompt_ids", std::to_string(prompt) + " tokens; the KV pool holds " +
                                             std::to_string(held) +
                                             " of one sequence: raise the worker's KV memory");
  }
  // The last token is chosen without storing its own KV.
  const int64_t capacity = std::min(held, limits.context_tokens);
  const int64_t room = std::min(limits.context_tokens - prompt, capacity - prompt + 1);
  StopOptions& stop = request->stop;
  stop.max_new_tokens = std::min(stop.max_new_tokens, room);
  stop.min_new_tokens = std::min(stop.min_new_tokens, stop.max_new_tokens);
  if (static_cast<int64_t>(request->generated_ids.size()) > room) {
    return FieldOutOfRange("generated_ids", std::to_string(request->generated_ids.size()) +
                                                " tokens; after the prompt there is room for " +
                                                std::to_string(room));
  }
  return CheckPromise(*format, *request);
}

}  // namespace kvist::worker
