// The engine's sum of its memory, beside what it holds of the heap: every operator new is counted.
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cache_manager/block_pool.h"
#include "cache_manager/event_log.h"
#include "cache_manager/tier_index.h"
#include "gtest/gtest.h"
#include "tests/support/allocation_counter.h"
#include "tests/support/hash_backend.h"
#include "tests/support/hash_reference.h"
#include "tests/support/recording_sink.h"
#include "tests/support/simulated_clock.h"
#include "tests/support/temp_folder.h"
#include "worker/engine/engine_core.h"
#include "worker/engine/prompt_lookup.h"

namespace kvist::worker {
namespace {

// What the heap rounds up: pages of a large piece.
constexpr int64_t kRounding = 8 << 12;

struct Held {
  int64_t told = 0;
  int64_t bytes = 0;
};
// What `make` made holds, and says.
template <typename Make>
Held HeldBy(Make make) {
  const int64_t before = testing::HeldBytes();
  const auto made = make();
  return {.told = made->memory_bytes(), .bytes = testing::HeldBytes() - before};
}

TEST(EngineMemoryTest, PoolsTiersAndLookupsHoldWhatTheySay) {
  cache_manager::EventLog log({.num_pools = 1});
  const Held held[] = {
      HeldBy([&] {
        return std::make_unique<cache_manager::BlockPool>(
            cache_manager::BlockPool::Options{.num_blocks = 20'000}, &log);
      }),
      HeldBy([&] {
        return std::make_unique<cache_manager::TierIndex>(
            cache_manager::TierIndex::Options{.num_slots = 20'000},
            std::vector<cache_manager::TierIndex::Found>(), &log);
      }),
      HeldBy([] { return std::make_unique<PromptLookup>(20'000); }),
  };
  for (const Held& one : held) {
    EXPECT_GT(one.told, 500'000);
    EXPECT_NEAR(static_cast<double>(one.told), static_cast<double>(one.bytes), kRounding);
  }
}

// Every slot filled, and each of them again: the map of names grows no more.
TEST(EngineMemoryTest, ATierTakesNoMoreWhenItIsFull) {
  cache_manager::EventLog log({.num_pools = 1, .max_waiting = 16});
  cache_manager::TierIndex tier({.num_slots = 1000}, {}, &log);
  const int64_t told = tier.memory_bytes();
  const int64_t before = testing::HeldBytes();
  cache_manager::TierBlock block{.parent = cache_manager::RootKey({.model_fingerprint = "a"})};
  for (int32_t i = 0; i < 5000; ++i) {
    block.key = cache_manager::ChildKey(block.parent, std::vector<int32_t>{i});
    tier.Finish(*tier.Begin(block));
  }
  EXPECT_EQ(tier.stored(), 1000);
  EXPECT_EQ(testing::HeldBytes(), before);
  EXPECT_EQ(tier.memory_bytes(), told);
}

class EngineMemorySumTest : public ::testing::Test {
 protected:
  void Make(bool all) {
    core_.reset();
    backend_.windows = {0, 24};
    backend_.num_blocks = 20'000;
    backend_.context_tokens = 20'000;
    EngineOptions options;
    auto hash = std::make_unique<HashBackend>(backend_, control_);
    if (all) {
      auto disk =
          OpenDiskStore({.directory = folder_.path(), .bytes = 20 << 20, .clock = &clock_}, *hash);
      ASSERT_TRUE(disk.ok()) << disk.status();
      options.disk = *std::move(disk);
      options.speculative_tokens = 4;
    }
    const int64_t before = testing::HeldBytes();
    core_ = std::make_unique<EngineCore>(options, std::move(hash), &clock_);
    held_ = testing::HeldBytes() - before;
  }
  std::map<std::string, int64_t> Parts() const {
    std::map<std::string, int64_t> parts;
    for (const MemoryPart& part : core_->memory()) {
      EXPECT_GT(part.bytes, 0) << part.name;
      EXPECT_TRUE(parts.emplace(part.name, part.bytes).second) << part.name << " twice";
    }
    return parts;
  }

  TempFolder folder_;
  SimulatedClock clock_;
  HashBackendOptions backend_;
  std::shared_ptr<HashBackendControl> control_ = std::make_shared<HashBackendControl>();
  std::unique_ptr<EngineCore> core_;
  int64_t held_ = 0;  // what the engine took for itself
};

// But for the log of events, and what grows with requests.
TEST_F(EngineMemorySumTest, IsAllThatAnEngineTakesAtItsStart) {
  constexpr int64_t kFewOther = 200'000;
  for (const bool all : {false, true}) {
    Make(all);
    std::map<std::string, int64_t> parts = Parts();
    EXPECT_EQ(parts.size(), all ? 5u : 2u);
    EXPECT_EQ(parts["kv"], core_->backend().memory()[0].bytes);
    // The disk's buffers were there before, as the backend's KV was.
    const int64_t own = parts["pools"] + parts["drafts"] + parts["tiers"];
    EXPECT_GT(own, 4'000'000);
    EXPECT_GE(held_, own - kRounding);
    EXPECT_LE(held_, own + kFewOther);
  }
}

}  // namespace
}  // namespace kvist::worker
