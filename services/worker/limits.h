// Limits of the worker role, each with its reason.
#ifndef KVIST_SERVICES_WORKER_LIMITS_H_
#define KVIST_SERVICES_WORKER_LIMITS_H_

#include <chrono>
#include <cstddef>

namespace kvist::services {

// An HMAC-SHA-256.
inline constexpr size_t kTenantSaltBytes = 32;
// Tokens of one request that wait for a client that does not read: half of the default context. One more cancels it.
inline constexpr size_t kMaxBufferedTokens = 4096;
// Tokens of one message: with 20 alternatives each below 256 KiB.
inline constexpr size_t kMaxTokensPerMessage = 1024;
// Silence of a stream after which progress is sent; half of what the protocol promises.
inline constexpr std::chrono::milliseconds kProgressInterval{250};
// Drain calls that wait at once: each holds a thread.
inline constexpr int kMaxDrainCalls = 4;
inline constexpr std::chrono::milliseconds kMaxDrainTime{600'000};

}  // namespace kvist::services

#endif  // KVIST_SERVICES_WORKER_LIMITS_H_
