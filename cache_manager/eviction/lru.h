// Least recently used first.
#ifndef KVIST_CACHE_MANAGER_EVICTION_LRU_H_
#define KVIST_CACHE_MANAGER_EVICTION_LRU_H_

#include <memory>

#include "cache_manager/eviction/policy.h"

namespace kvist::cache_manager {

std::unique_ptr<EvictionPolicy> MakeLruPolicy(int32_t capacity);

}  // namespace kvist::cache_manager

#endif  // KVIST_CACHE_MANAGER_EVICTION_LRU_H_
