// Between the messages of the worker stream on the wire and the plain ones of cache_manager/stream.
// Peers are untrusted: lengths of keys, counts, enum values and number ranges are checked before
// anything is copied.
#ifndef KVIST_SERVICES_RUNTIME_STREAM_WIRE_H_
#define KVIST_SERVICES_RUNTIME_STREAM_WIRE_H_

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "cache_manager/block_key.h"
#include "cache_manager/stream/messages.h"
#include "proto/kvist/v1/cache_manager.pb.h"

namespace kvist::services {

// What a Hello says beside the plain one: facts for people and frontends that the mirror has no use
// for.
struct WorkerDescription {
  std::string model_name;
  int64_t context_tokens = 0;
};

// All From...: INVALID_ARGUMENT with the field named.
absl::StatusOr<cache_manager::WorkerMessage> FromProto(const v1::WorkerMessage& message);
absl::StatusOr<WorkerDescription> DescriptionFromProto(const v1::Hello& hello);
absl::StatusOr<cache_manager::ManagerMessage> FromProto(const v1::ManagerMessage& message);
v1::WorkerMessage ToProto(const cache_manager::WorkerMessage& message,
                          const WorkerDescription& description);
v1::ManagerMessage ToProto(const cache_manager::ManagerMessage& message,
                           const std::string& manager_id);

// Concatenated keys of 16 bytes each; at most `max_keys`.
absl::StatusOr<std::vector<cache_manager::BlockKey>> KeysFromBytes(std::string_view field,
                                                                   std::string_view bytes,
                                                                   size_t max_keys);
std::string KeyBytes(const cache_manager::BlockKey& key);

v1::Pool ToProto(const cache_manager::PoolSpec& pool);
v1::WorkerLoad ToProto(const cache_manager::WorkerLoad& load);

}  // namespace kvist::services

#endif  // KVIST_SERVICES_RUNTIME_STREAM_WIRE_H_
