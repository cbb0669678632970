#include "cache_manager/eviction/registry.h"

#include <array>
#include <string>

#include "cache_manager/eviction/lru.h"
#include "common/base/status.h"

namespace kvist::cache_manager {
namespace {

constexpr std::array<EvictionPolicyEntry, 1> kPolicies = {{
    {"lru", &MakeLruPolicy},
}};

}  // namespace

std::span<const EvictionPolicyEntry> EvictionPolicies() { return kPolicies; }

absl::StatusOr<EvictionPolicyFactory> FindEvictionPolicy(std::string_view name) {
  std::string names;
  for (const EvictionPolicyEntry& entry : kPolicies) {
    if (entry.name == name) return entry.make;
    names += names.empty() ? "" : ", ";
    names += entry.name;
  }
  return InvalidField("eviction_policy", "unknown; there are: " + names);
}

}  // namespace kvist::cache_manager
