// What a worker says about itself when it connects: fixed for one incarnation.
#ifndef KVIST_CACHE_MANAGER_WORKER_INFO_H_
#define KVIST_CACHE_MANAGER_WORKER_INFO_H_

#include <cstdint>
#include <string>
#include <vector>

#include "common/base/ids.h"

namespace kvist::cache_manager {

// One pool: the layers of one group in one KV format.
struct PoolSpec {
  std::string group;           // "full", "window=512"
  std::string format;          // "f16", "q8"
  uint32_t window_tokens = 0;  // 0: full attention, every earlier block is needed
  uint32_t block_tokens = 0;
  uint64_t bytes_per_block = 0;  // all layers of the group
  uint32_t num_blocks = 0;

  friend bool operator==(const PoolSpec&, const PoolSpec&) = default;
};

struct WorkerInfo {
  WorkerId id;
  Incarnation incarnation;
  std::string model_fingerprint;
  std::string numerics_id;  // copies and byte-identical migration require it equal
  std::string address;      // where frontends reach the worker
  uint32_t block_tokens = 0;
  std::vector<PoolSpec> pools;  // indexed by PoolIndex

  friend bool operator==(const WorkerInfo&, const WorkerInfo&) = default;
};

}  // namespace kvist::cache_manager

#endif  // KVIST_CACHE_MANAGER_WORKER_INFO_H_
