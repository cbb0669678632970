// The contract suite: every row of the registry must pass it. What only LRU promises is below.
#include "cache_manager/eviction/policy.h"

#include <random>
#include <set>
#include <string>

#include "cache_manager/eviction/lru.h"
#include "cache_manager/eviction/registry.h"
#include "gtest/gtest.h"

namespace kvist::cache_manager {
namespace {

class PolicyTest : public testing::TestWithParam<EvictionPolicyEntry> {};

TEST_P(PolicyTest, VictimIsAlwaysACandidateAndEveryOneGoesOnce) {
  constexpr int32_t kBlocks = 50;
  const auto policy = GetParam().make(kBlocks);
  std::set<BlockIndex> candidates;
  std::mt19937_64 rng(1);
  uint64_t uses = 0;
  EXPECT_EQ(policy->Victim(), kNoBlock);
  for (int i = 0; i < 20'000; ++i) {
    const BlockIndex block = static_cast<BlockIndex>(rng() % kBlocks);
    if (candidates.contains(block)) {
      policy->Remove(block);
      candidates.erase(block);
    } else {
      policy->Insert({.block = block, .last_use = ++uses});
      candidates.insert(block);
    }
    ASSERT_EQ(policy->Contains(block), candidates.contains(block));
    ASSERT_EQ(policy->size(), static_cast<int32_t>(candidates.size()));
    ASSERT_EQ(candidates.contains(policy->Victim()), !candidates.empty());
  }
  while (!candidates.empty()) {
    const BlockIndex victim = policy->Victim();
    ASSERT_EQ(candidates.erase(victim), 1u);
    policy->Remove(victim);
  }
  EXPECT_EQ(policy->Victim(), kNoBlock);
}

TEST_P(PolicyTest, IsFoundByName) {
  EXPECT_EQ(FindEvictionPolicy(GetParam().name).value(), GetParam().make);
}

INSTANTIATE_TEST_SUITE_P(Registry, PolicyTest,
                         testing::ValuesIn(EvictionPolicies().begin(), EvictionPolicies().end()),
                         [](const auto& row) { return std::string(row.param.name); });

TEST(LruTest, OrderIsByLastUseWhateverTheOrderOfArrival) {
  const auto policy = MakeLruPolicy(4);
  policy->Insert({.block = 2, .last_use = 30});
  policy->Insert({.block = 0, .last_use = 10});
  policy->Insert({.block = 3, .last_use = 20});
  policy->Insert({.block = 1, .last_use = 5});
  for (const BlockIndex expected : {1, 0, 3, 2}) {
    EXPECT_EQ(policy->Victim(), expected);
    policy->Remove(expected);
  }
}

TEST(RegistryTest, UnknownNamesAreRefusedWithTheKnownOnes) {
  const absl::Status status = FindEvictionPolicy("none such").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("lru"), absl::string_view::npos);
}

}  // namespace
}  // namespace kvist::cache_manager
