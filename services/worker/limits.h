// Limits of the worker role, each with its reason.
#ifndef KVIST_SERVICES_WORKER_LIMITS_H_
#define KVIST_SERVICES_WORKER_LIMITS_H_

#include <chrono>
#include <cstddef>

namespace kvist::services {

// An HMAC-SHA-256.
inline constexpr size_t kTenantSaltBytes = 32;
// Tokens of one request that wait for a client that does not read: half of the default context. One
// more cancels it.
inline constexpr size_t kMaxBufferedTokens = 4096;
// Tokens of one message: with 20 alternatives each below 256 KiB.
inline constexpr size_t kMaxTokensPerMessage = 1024;
// Silence of a stream after which progress is sent; half of what the protocol promises.
inline constexpr std::chrono::milliseconds kProgressInterval{250};
// Drain calls that wait at once: each holds a thread.
inline constexpr int kMaxDrainCalls = 4;
inline constexpr std::chrono::milliseconds kMaxDrainTime{600'000};
// Messages to the manager taken from the engine's state at once: a batch or two, a chunk, a
// heartbeat. Each waits for a step.
inline constexpr size_t kMaxMessagesPerPoll = 4;
// The manager hears of events this late at most, and heartbeats are looked at this often.
inline constexpr std::chrono::milliseconds kMaxEventDelay{100};
// Between two tries to reach the manager.
inline constexpr std::chrono::milliseconds kMinReconnectBackoff{100};
inline constexpr std::chrono::milliseconds kMaxReconnectBackoff{1'000};

// Bytes of one message of ExportSession and ImportSession: a quarter of gRPC's default limit.
inline constexpr size_t kMaxSessionRecordsMessage = size_t{1} << 20;
// Bytes of blocks that are copied between two steps, one block at least: some tenths of a
// millisecond, a small part of a decode step.
inline constexpr size_t kSessionSliceBytes = size_t{1} << 20;
// Blocks that get their names between two steps: about a microsecond each.
inline constexpr size_t kSessionBlocksNamedAtOnce = 128;

}  // namespace kvist::services

#endif  // KVIST_SERVICES_WORKER_LIMITS_H_
