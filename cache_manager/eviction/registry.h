// The eviction policies by name.
#ifndef KVIST_CACHE_MANAGER_EVICTION_REGISTRY_H_
#define KVIST_CACHE_MANAGER_EVICTION_REGISTRY_H_

#include <span>
#include <string_view>

#include "absl/status/statusor.h"
#include "cache_manager/eviction/policy.h"

namespace kvist::cache_manager {

struct EvictionPolicyEntry {
  std::string_view name;
  EvictionPolicyFactory make;
};

// All policies; the first is the default.
std::span<const EvictionPolicyEntry> EvictionPolicies();
// INVALID_ARGUMENT naming those that there are.
absl::StatusOr<EvictionPolicyFactory> FindEvictionPolicy(std::string_view name);

}  // namespace kvist::cache_manager

#endif  // KVIST_CACHE_MANAGER_EVICTION_REGISTRY_H_
