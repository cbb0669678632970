// Every limit that the frontend puts on a request, with its reason.
// tests/services/frontend/validate_test.cc tries each at the limit and one over.
#ifndef KVIST_SERVICES_FRONTEND_LIMITS_H_
#define KVIST_SERVICES_FRONTEND_LIMITS_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>

namespace kvist::services {

inline constexpr size_t kMaxModelNameBytes = 256;  // general.name of a model file may be a sentence
inline constexpr size_t kMaxTextBytes = size_t{1}
                                        << 20;  // a megabyte of text is beyond every context served
inline constexpr size_t kMaxChatMessages = 1024;  // each costs control tokens
inline constexpr int kMaxPromptIds = 1 << 20;     // 4 MiB of ids; the context is the real limit
inline constexpr int kMaxRequestStopIds = 64;     // compared with every token
inline constexpr int kMaxStopStrings = 16;        // matched against every character
inline constexpr size_t kMaxStopStringBytes =
    256;  // text held back from the client while one may be forming
inline constexpr int32_t kMaxSamples = 16;  // each has a thread here and a sequence at the worker
// So that each sample's index is an int32.
inline constexpr int32_t kMaxSampleIndex = std::numeric_limits<int32_t>::max() - kMaxSamples;
// With several samples: each one's own id is this and ".k".
inline constexpr size_t kMaxSampledRequestIdBytes = 61;
inline constexpr int32_t kMaxTopLogprobs = 20;    // the engine sorts this many per token
inline constexpr float kMaxTemperature = 100.0f;  // beyond it everything is uniform
inline constexpr float kMaxRepetitionPenalty = 100.0f;
inline constexpr float kMaxAbsolutePenalty = 2.0f;  // as OpenAI's API
inline constexpr int32_t kMaxAbsolutePriority = 100;
inline constexpr int64_t kDefaultMaxNewTokens = 256;
inline constexpr float kDefaultChatTemperature = 0.7f;  // ARCHITECTURE.md, section 9
inline constexpr float kDefaultChatTopP = 0.9f;
inline constexpr size_t kMaxDetokenizeIds = size_t{1} << 20;
inline constexpr int64_t kMaxSessionTtlSeconds = 31'536'000;    // a year
inline constexpr size_t kMaxTurnRecordBytes = size_t{4} << 20;  // of BeginTurnRequest.request

inline constexpr int32_t kMaxSessionFilesAtOnce = 4;  // each holds blocks on a worker
// Bytes of one message of Export and Import: a quarter of gRPC's default limit.
inline constexpr size_t kMaxSessionFileMessage = size_t{1} << 20;
// A client of Export or Import that neither takes nor gives anything for so long is closed.
inline constexpr std::chrono::seconds kSessionFilePatience{30};
// And no call lasts longer: 10 GB at 17 MB/s.
inline constexpr std::chrono::seconds kMaxSessionFileTime{600};

}  // namespace kvist::services

#endif  // KVIST_SERVICES_FRONTEND_LIMITS_H_
