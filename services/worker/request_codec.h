// Between the Worker service's messages and the engine's plain data.
#ifndef KVIST_SERVICES_WORKER_REQUEST_CODEC_H_
#define KVIST_SERVICES_WORKER_REQUEST_CODEC_H_

#include <chrono>
#include <cstdint>
#include <optional>
#include <span>

#include "absl/status/statusor.h"
#include "common/base/clock.h"
#include "proto/kvist/v1/worker.pb.h"
#include "worker/engine/request.h"

namespace kvist::services {

struct RequestFacts {
  int64_t context_tokens = 0;
  std::span<const int32_t> model_stop_ids;  // added unless the request ignores them
};

// Checks what the engine cannot see (lengths before they are copied, unset and unknown fields, ids'
// spelling); the engine checks the rest. INVALID_ARGUMENT or OUT_OF_RANGE with the field named.
absl::StatusOr<worker::GenerateRequest> ParseGenerateRequest(
    const v1::WorkerGenerateRequest& message, const RequestFacts& facts);

// Allocation, attention and format of a request or a session. INVALID_ARGUMENT naming the field.
absl::StatusOr<worker::CacheOptions> ParseCache(const v1::CacheParams& params,
                                                int64_t context_tokens);

// The deadline of a call; nullopt if it has none.
std::optional<MonotonicTime> MonotonicDeadline(std::chrono::system_clock::time_point deadline,
                                               const Clock& clock);

void FillToken(const worker::TokenOutput& token, v1::Token* message);
void FillFinished(const worker::FinishInfo& info, v1::WorkerFinished* message);

}  // namespace kvist::services

#endif  // KVIST_SERVICES_WORKER_REQUEST_CODEC_H_
