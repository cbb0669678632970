#include "worker/backend/kv_pools.h"

#include <cstdint>
#include <string>
#include <vector>

#include "cache_manager/limits.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvist::worker {
namespace {

using ::testing::HasSubstr;

const std::vector<LayerGroup> kGroups = {
    {.layers = {5, 11}, .kv_heads = 1, .head_dim = 32, .window = 0},
    {.layers = {0, 1, 2, 3, 4, 6, 7, 8, 9, 10}, .kv_heads = 1, .head_dim = 32, .window = 64}};

KvPoolsOptions Options() {
  return {.formats = {KvFormat::kF16, KvFormat::kF32},
          .block_tokens = 16,
          .context_tokens = 1000,
          .max_batch_tokens = 100,
          .kv_bytes = 0,
          .blocks_per_pool = 0};
}

int64_t TotalBytes(const std::vector<PoolSpec>& specs) {
  int64_t bytes = 0;
  for (const PoolSpec& spec : specs) bytes += spec.num_blocks * spec.block_bytes;
  return bytes;
}

// 63 blocks for 1000 tokens; 12 for window 64, batch 100 and a block 16.
constexpr int64_t kFullBlocks = 63;
constexpr int64_t kWindowedBlocks = 12;

int64_t LeastBytes() {
  int64_t bytes = 0;
  for (const KvFormat format : Options().formats) {
    bytes += kFullBlocks * KvLayout(kGroups[0], format, 16).block_bytes();
    bytes += kWindowedBlocks * KvLayout(kGroups[1], format, 16).block_bytes();
  }
  return bytes;
}

TEST(PlanKvPoolsTest, LeastBytesHoldOneSequenceInEachFormatAndOneByteLessNamesThem) {
  KvPoolsOptions options = Options();
  options.kv_bytes = LeastBytes();
  const auto specs = PlanKvPools(kGroups, options);
  ASSERT_TRUE(specs.ok()) << specs.status();
  ASSERT_EQ(specs->size(), 4u);
  for (size_t pool = 0; pool < 4; ++pool) {
    EXPECT_EQ((*specs)[pool].format, pool < 2 ? KvFormat::kF16 : KvFormat::kF32);
    EXPECT_EQ((*specs)[pool].group, static_cast<int32_t>(pool % 2));
    EXPECT_EQ((*specs)[pool].num_blocks, pool % 2 == 0 ? kFullBlocks : kWindowedBlocks);
  }
  --options.kv_bytes;
  const absl::Status status = PlanKvPools(kGroups, options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("kv_bytes"));
  EXPECT_THAT(std::string(status.message()), HasSubstr(std::to_string(LeastBytes())));
}

TEST(PlanKvPoolsTest, MoreBytesGiveEveryPoolAsManyMoreBlocksAndFitTheBudget) {
  KvPoolsOptions options = Options();
  for (const int64_t more : {1, 100000, 3333333, 100000000}) {
    options.kv_bytes = LeastBytes() + more;
    const auto specs = PlanKvPools(kGroups, options);
    ASSERT_TRUE(specs.ok());
    const int64_t extra = (*specs)[0].num_blocks - kFullBlocks;
    for (const PoolSpec& spec : *specs) {
      EXPECT_EQ(spec.num_blocks - (spec.group == 0 ? kFullBlocks : kWindowedBlocks), extra);
    }
    EXPECT_LE(TotalBytes(*specs), options.kv_bytes);
    EXPECT_GT(TotalBytes(*specs) + KvBytesOf(kGroups, options, 1), options.kv_bytes);
  }
}

TEST(PlanKvPoolsTest, BlocksPerPoolOverrideBytes) {
  KvPoolsOptions options = Options();
  options.kv_bytes = 1;
  options.blocks_per_pool = 3;
  const auto specs = PlanKvPools(kGroups, options);
  ASSERT_TRUE(specs.ok());
  for (const PoolSpec& spec : *specs) EXPECT_EQ(spec.num_blocks, 3);
}

TEST(PlanKvPoolsTest, WrongOptionsAreNamed) {
  const auto message_of = [](const KvPoolsOptions& options) {
    return std::string(PlanKvPools(kGroups, options).status().message());
  };
  KvPoolsOptions options = Options();
  options.block_tokens = 24;
  EXPECT_THAT(message_of(options), HasSubstr("block_tokens"));
  options = Options();
  options.formats = {};
  EXPECT_THAT(message_of(options), HasSubstr("kv_formats"));
  options.formats = {KvFormat::kF16, KvFormat::kF16};
  EXPECT_THAT(message_of(options), HasSubstr("f16 is given twice"));
  options = Options();
  options.kv_bytes = -1;
  EXPECT_THAT(message_of(options), HasSubstr("kv_bytes"));
  options = Options();
  options.blocks_per_pool = -1;
  EXPECT_THAT(message_of(options), HasSubstr("blocks_per_pool"));
  options.blocks_per_pool = cache_manager::kMaxBlocksPerPool + 1;
  EXPECT_THAT(message_of(options), HasSubstr("blocks_per_pool"));
  options.blocks_per_pool = cache_manager::kMaxBlocksPerPool;
  EXPECT_TRUE(PlanKvPools(kGroups, options).ok());
}

TEST(PlanKvPoolsTest, NoPoolHasMoreBlocksThanAManagerTakes) {
  KvPoolsOptions options = Options();
  options.kv_bytes = int64_t{1} << 50;
  const auto specs = PlanKvPools(kGroups, options);
  ASSERT_TRUE(specs.ok()) << specs.status();
  for (const PoolSpec& spec : *specs) {
    EXPECT_EQ(spec.num_blocks, static_cast<int32_t>(cache_manager::kMaxBlocksPerPool));
  }
}

TEST(PlanKvPoolsTest, AFormatThatCannotHoldAGroupsHeadsIsNamedWithTheirSize) {
  std::vector<LayerGroup> groups = kGroups;
  KvPoolsOptions options = Options();
  options.blocks_per_pool = 2;
  options.formats = {KvFormat::kF16, KvFormat::kQ8, KvFormat::kQ4};
  EXPECT_TRUE(PlanKvPools(groups, options).ok());
  groups[1].head_dim = 80;
  for (const absl::Status& status :
       {CheckKvPools(groups, options), PlanKvPools(groups, options).status()}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("kv_formats"));
    EXPECT_THAT(std::string(status.message()), HasSubstr("q4"));
    EXPECT_THAT(std::string(status.message()), HasSubstr("80"));
  }
}

TEST(PlanKvPoolsTest, QuantisedPoolsOfABudgetHoldMoreTokens) {
  KvPoolsOptions options = Options();
  options.kv_bytes = 50'000'000;
  std::vector<int64_t> tokens;
  for (const KvFormat format : {KvFormat::kF32, KvFormat::kF16, KvFormat::kQ8, KvFormat::kQ4}) {
    options.formats = {format};
    const auto specs = PlanKvPools(kGroups, options);
    ASSERT_TRUE(specs.ok()) << specs.status();
    tokens.push_back((*specs)[0].num_blocks * 16);
  }
  EXPECT_GT(tokens[1], tokens[0]);
  EXPECT_GT(tokens[2], 3 * tokens[1] / 2);
  EXPECT_GT(tokens[3], 3 * tokens[2] / 2);
}

TEST(KvPoolsTest, BlocksOfAllPoolsAreDisjointAndBeginZeroed) {
  KvPoolsOptions options = Options();
  options.blocks_per_pool = 2;
  const auto pools = KvPools::Create(kGroups, *PlanKvPools(kGroups, options));
  ASSERT_TRUE(pools.ok()) << pools.status();
  for (int32_t pool = 0; pool < 4; ++pool) {
    for (int32_t block = 0; block < 2; ++block) {
      for (std::byte& byte : pools->Block(pool, block)) {
        ASSERT_EQ(byte, std::byte{0});
        byte = static_cast<std::byte>(1 + pool * 2 + block);
      }
    }
  }
  for (int32_t pool = 0; pool < 4; ++pool) {
    EXPECT_EQ(pools->Find(pool % 2, pool < 2 ? KvFormat::kF16 : KvFormat::kF32), pool);
    for (int32_t block = 0; block < 2; ++block) {
      for (const std::byte byte : pools->Block(pool, block)) {
        ASSERT_EQ(byte, static_cast<std::byte>(1 + pool * 2 + block));
      }
    }
  }
  EXPECT_EQ(pools->Find(0, KvFormat::kBF16), -1);
  EXPECT_EQ(pools->Find(2, KvFormat::kF16), -1);
}

}  // namespace
}  // namespace kvist::worker
