// How the next token is chosen and when a generation ends: plain data with defaults and one
// validation.
#ifndef KVIST_WORKER_SAMPLING_SAMPLING_OPTIONS_H_
#define KVIST_WORKER_SAMPLING_SAMPLING_OPTIONS_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"

namespace kvist::worker {

// Applied in this order: penalties, temperature, top-k, top-p, min-p. Ties always go to the lowest
// id.
struct SamplingOptions {
  float temperature = 0.0f;         // 0: greedy; up to 100
  int32_t top_k = 0;                // 0: off; 1 .. vocabulary
  float top_p = 1.0f;               // (0, 1]
  float min_p = 0.0f;               // [0, 1]
  float repetition_penalty = 1.0f;  // (0, 100]; over prompt and output
  float presence_penalty = 0.0f;    // [-2, 2]; over output
  float frequency_penalty = 0.0f;   // [-2, 2]; over output
  uint64_t seed = 0;                // with position and sample index: the key of the random numbers
  uint32_t sample_index = 0;
  int32_t logprobs = -1;  // -1: none; else the chosen token's and this many of the best, up to 20
};
inline constexpr int32_t kMaxLogprobs = 20;

struct StopOptions {
  int64_t max_new_tokens = 256;   // >= 1; generated_ids of a replay count
  int64_t min_new_tokens = 0;     // stop ids are not chosen before
  std::vector<int32_t> stop_ids;  // end the generation; not part of the text, but of the ids
};
// Of a request, and of a model (as text::kMaxStopIds): callers join the two. Each is compared with
// each new token.
inline constexpr size_t kMaxRequestedStopIds = 64;
inline constexpr size_t kMaxModelStopIds = 64;
inline constexpr size_t kMaxStopIds = kMaxRequestedStopIds + kMaxModelStopIds;

// INVALID_ARGUMENT with the field named for NaN, infinite or out-of-range values.
absl::Status Validate(const SamplingOptions& options, int64_t vocab);
absl::Status Validate(const StopOptions& options, int64_t vocab);

}  // namespace kvist::worker

#endif  // KVIST_WORKER_SAMPLING_SAMPLING_OPTIONS_H_
