#include "worker/kv/layout.h"

#include <set>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvist::worker {
namespace {

constexpr KvFormat kAllFormats[] = {KvFormat::kF16, KvFormat::kF32, KvFormat::kBF16, KvFormat::kQ8,
                                    KvFormat::kQ4};

TEST(KvFormatTest, NamesAndFormatsConvertBothWaysAndUnknownNamesListTheKnown) {
  for (const KvFormat format : kAllFormats) {
    EXPECT_EQ(*KvFormatFromName(KvFormatName(format)), format);
  }
  EXPECT_EQ(*KvFormatFromName("q8"), KvFormat::kQ8);
  EXPECT_EQ(*KvFormatFromName("q4"), KvFormat::kQ4);
  const absl::Status status = KvFormatFromName("q3").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("f16, f32, bf16, q8, q4"));
}

TEST(KvFormatTest, Q4NeedsWholeGroupsAndTheErrorNamesFormatAndHeadSize) {
  for (const int64_t dim : {32, 64, 96, 128, 256}) {
    EXPECT_TRUE(CheckHeadDim(KvFormat::kQ4, dim).ok()) << dim;
  }
  for (const int64_t dim : {8, 16, 40, 80, 112}) {
    const absl::Status status = CheckHeadDim(KvFormat::kQ4, dim);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("q4"));
    EXPECT_THAT(std::string(status.message()), ::testing::EndsWith(std::to_string(dim)));
    for (const KvFormat format : kAllFormats) {
      EXPECT_EQ(CheckHeadDim(format, dim).ok(), format != KvFormat::kQ4) << dim;
    }
  }
}

TEST(KvLayoutTest, BytesAreThoseOfTheModelsAsPublished) {
  LayerGroup smol{.layers = {}, .kv_heads = 3, .head_dim = 64, .window = 0};
  for (int layer = 0; layer < 30; ++layer) smol.layers.push_back(layer);
  EXPECT_EQ(KvLayout(smol, KvFormat::kF16, 16).BytesPerToken(), 23040);
  EXPECT_EQ(KvLayout(smol, KvFormat::kF32, 64).BytesPerToken(), 46080);
  EXPECT_EQ(KvLayout(smol, KvFormat::kBF16, 128).block_bytes(), 128 * 23040);
  // Of a page of 64 dimensions: 2048 bytes of q8 and 128 of scales; 1024 of q4 and 384 of steps,
  // minima and fifth bits.
  EXPECT_EQ(KvLayout(smol, KvFormat::kQ8, 16).block_bytes(), 90 * 2176);
  EXPECT_EQ(KvLayout(smol, KvFormat::kQ8, 16).BytesPerToken(), 12240);
  EXPECT_EQ(KvLayout(smol, KvFormat::kQ4, 16).block_bytes(), 90 * 1408);
  EXPECT_EQ(KvLayout(smol, KvFormat::kQ4, 128).BytesPerToken(), 7920);
  LayerGroup gemma{.layers = {}, .kv_heads = 1, .head_dim = 256, .window = 0};
  for (int layer = 0; layer < 18; ++layer) gemma.layers.push_back(layer);
  EXPECT_EQ(KvLayout(gemma, KvFormat::kF16, 16).BytesPerToken(), 18432);
  EXPECT_EQ(KvLayout(gemma, KvFormat::kQ8, 16).BytesPerToken(), 9792);
  EXPECT_EQ(KvLayout(gemma, KvFormat::kQ4, 16).BytesPerToken(), 6336);
}

// Parts of a page follow each other without a hole; pages keep the alignment of the arena.
TEST(KvPageLayoutTest, PartsTileThePage) {
  for (const KvFormat format : kAllFormats) {
    for (int64_t dim = 8; dim <= 256; dim += 8) {
      if (!HoldsHeadDim(format, dim)) continue;
      const KvPageLayout page = KvPageLayoutOf(format, dim);
      EXPECT_EQ(page.key_scales, 2 * page.values);
      EXPECT_LE(page.key_scales, page.value_scales);
      EXPECT_LE(page.value_scales, page.bytes);
      EXPECT_EQ(page.bytes % 64, 0) << dim;
    }
  }
}

class KvLayoutFormatTest : public ::testing::TestWithParam<KvFormat> {};

INSTANTIATE_TEST_SUITE_P(Formats, KvLayoutFormatTest, ::testing::ValuesIn(kAllFormats),
                         [](const auto& test) { return std::string(KvFormatName(test.param)); });

TEST_P(KvLayoutFormatTest, PagesOfAllLayersAndHeadsTileTheBlock) {
  const LayerGroup group{.layers = {1, 4, 7}, .kv_heads = 2, .head_dim = 96, .window = 8};
  for (const int32_t block_tokens : {16, 32, 64, 128}) {
    const KvLayout layout(group, GetParam(), block_tokens);
    EXPECT_EQ(layout.page_bytes(), KvPageLayoutOf(GetParam(), 96).bytes);
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
