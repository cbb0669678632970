#include "worker/kv/layout.h"

#include <set>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvist::worker {
namespace {

TEST(KvFormatTest, NamesAndFormatsConvertBothWaysAndUnknownNamesListTheKnown) {
  for (const KvFormat format : {KvFormat::kF16, KvFormat::kF32, KvFormat::kBF16}) {
    EXPECT_EQ(*KvFormatFromName(KvFormatName(format)), format);
  }
  const absl::Status status = KvFormatFromName("q3").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("f16, f32, bf16"));
}

TEST(KvLayoutTest, BytesAreThoseOfTheModelsAsPublished) {
  LayerGroup smol{.layers = {}, .kv_heads = 3, .head_dim = 64, .window = 0};
  for (int layer = 0; layer < 30; ++layer) smol.layers.push_back(layer);
  EXPECT_EQ(KvLayout(smol, KvFormat::kF16, 16).BytesPerToken(), 23040);
  EXPECT_EQ(KvLayout(smol, KvFormat::kF32, 64).BytesPerToken(), 46080);
  EXPECT_EQ(KvLayout(smol, KvFormat::kBF16, 128).block_bytes(), 128 * 23040);
}

TEST(KvLayoutTest, PagesOfAllLayersAndHeadsTileTheBlock) {
  const LayerGroup group{.layers = {1, 4, 7}, .kv_heads = 2, .head_dim = 24, .window = 8};
  for (const int32_t block_tokens : {16, 32, 64, 128}) {
    const KvLayout layout(group, KvFormat::kF16, block_tokens);
    EXPECT_EQ(layout.page_bytes(), 2 * 16 * 24 * 2);
    EXPECT_EQ(layout.pages_per_block(), block_tokens / 16);
    std::set<int64_t> offsets;
    for (int64_t layer = 0; layer < 3; ++layer) {
      for (int64_t head = 0; head < 2; ++head) {
        for (int64_t page = 0; page < layout.pages_per_block(); ++page) {
          offsets.insert(layout.HeadOffset(layer, head) + page * layout.page_bytes());
        }
      }
    }
    const int64_t pages = 3 * 2 * layout.pages_per_block();
    EXPECT_EQ(static_cast<int64_t>(offsets.size()), pages);
    EXPECT_EQ(*offsets.begin(), 0);
    EXPECT_EQ(*offsets.rbegin(), (pages - 1) * layout.page_bytes());
    EXPECT_EQ(layout.block_bytes(), pages * layout.page_bytes());
  }
}

}  // namespace
}  // namespace kvist::worker
