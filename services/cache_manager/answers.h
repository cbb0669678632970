// From the mirror's plain data to the messages of the CacheManager service.
#ifndef KVIST_SERVICES_CACHE_MANAGER_ANSWERS_H_
#define KVIST_SERVICES_CACHE_MANAGER_ANSWERS_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "cache_manager/accounting.h"
#include "cache_manager/cluster_index.h"
#include "cache_manager/stream/messages.h"
#include "proto/kvist/v1/cache_manager.pb.h"

namespace kvist::services {

v1::Confidence ToProto(cache_manager::Confidence confidence);
// All but what the mirror does not know (model name, context).
v1::WorkerInfo ToProto(const cache_manager::WorkerEntry& entry, int64_t now_ms);
v1::SessionMemory ToProto(const SessionId& session, const cache_manager::SessionMemory& memory,
                          const cache_manager::ClusterIndex& index);
v1::BlockInfo ToProto(uint32_t pool, const cache_manager::BlockKey& key,
                      const cache_manager::MirrorBlock& block);
// `outcome` null: none came in time.
void FillOutcome(const WorkerId& worker, const cache_manager::CommandOutcome* outcome,
                 v1::WorkerOutcome* message);

// Named blocks of one worker. O(blocks).
struct UseOfWorker {
  uint64_t blocks = 0;
  uint64_t bytes = 0;
  uint64_t shared_bytes = 0;  // in more than one session's chain
};
UseOfWorker UseOf(const cache_manager::WorkerEntry& entry);

// Where a page of blocks begins: "POOL:KEY" (hex; empty: the pool's start) or, along a session's
// chains, "POOL:INDEX".
struct BlockCursor {
  size_t pool = 0;
  size_t index = 0;
  cache_manager::BlockKey after;
};
// INVALID_ARGUMENT naming page_token.
absl::StatusOr<BlockCursor> ParseKeyCursor(const std::string& token);
absl::StatusOr<BlockCursor> ParseChainCursor(const std::string& token);

}  // namespace kvist::services

#endif  // KVIST_SERVICES_CACHE_MANAGER_ANSWERS_H_
