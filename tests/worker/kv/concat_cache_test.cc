#include "worker/kv/concat_cache.h"

#include <cstdint>
#include <cstring>
#include <vector>

#include "gtest/gtest.h"

namespace kvist::worker {
namespace {

// Layers 0 and 2 see everything and have two kv heads; layer 1 has a window and one.
std::vector<LayerGroup> Groups() {
  return {{.layers = {0, 2}, .kv_heads = 2, .head_dim = 8},
          {.layers = {1}, .kv_heads = 1, .head_dim = 16, .window = 4}};
}
constexpr int64_t kPageBytes[] = {2 * 16 * 8 * 2, 2 * 16 * 16 * 2, 2 * 16 * 8 * 2};
constexpr int64_t kHeads[] = {2, 1, 2};

KvLayout LayoutOf(size_t layer) {
  return KvLayout(Groups()[layer == 1 ? 1 : 0], KvFormat::kF16, 16);
}

// The bytes of a page of a head, as the kernels find it (kernel_operations.h).
std::byte* PageOf(const ConcatCache& cache, size_t layer, int64_t head, int64_t page) {
  const KvPages kv = cache.kv().PagesOf(static_cast<int64_t>(layer), head, LayoutOf(layer));
  return kv.arena + kv.block_table[page / kv.pages_per_block] * kv.block_bytes + kv.offset +
         (page % kv.pages_per_block) * kv.page_stride;
}

uint8_t Mark(size_t layer, int64_t head, int64_t page) {
  return static_cast<uint8_t>(1 + 100 * static_cast<int64_t>(layer) + 40 * head + page);
}

TEST(ConcatCacheTest, EveryPageKeepsItsBytesWhenTheCacheGrows) {
  ConcatCache cache(Groups(), KvFormat::kF16);
  int64_t written = 0;  // pages
  for (int64_t tokens = 1; tokens <= 50; ++tokens) {
    ASSERT_TRUE(cache.Append(1).ok());
    ASSERT_EQ(cache.tokens(), tokens);
    const int64_t pages = (tokens + 15) / 16;
    ASSERT_EQ(cache.kv().pages, pages);
    for (size_t layer = 0; layer < 3; ++layer) {
      for (int64_t head = 0; head < kHeads[layer]; ++head) {
        for (int64_t page = 0; page < written; ++page) {
          const auto* bytes = reinterpret_cast<const uint8_t*>(PageOf(cache, layer, head, page));
          ASSERT_EQ(bytes[0], Mark(layer, head, page));
          ASSERT_EQ(bytes[kPageBytes[layer] - 1], Mark(layer, head, page));
        }
        for (int64_t page = written; page < pages; ++page) {
          std::memset(PageOf(cache, layer, head, page), Mark(layer, head, page),
                      static_cast<size_t>(kPageBytes[layer]));
        }
      }
    }
    written = pages;
  }
}

TEST(ConcatCacheTest, BytesAreThoseOfAllPagesAndThePeakHasTheCopyOfALayer) {
  ConcatCache cache(Groups(), KvFormat::kF16);
  const int64_t page_of_each = 2 * kPageBytes[0] + kPageBytes[1] + 2 * kPageBytes[2];
  ASSERT_TRUE(cache.Append(16).ok());
  EXPECT_EQ(cache.bytes(), page_of_each);
  EXPECT_EQ(cache.peak_bytes(), page_of_each);  // there was nothing to copy
  ASSERT_TRUE(cache.Append(1).ok());
  EXPECT_EQ(cache.bytes(), 2 * page_of_each);
  // While the last layer is copied, all others have grown and it is there twice.
  EXPECT_EQ(cache.peak_bytes(), 2 * page_of_each + 2 * kPageBytes[2]);
}

}  // namespace
}  // namespace kvist::worker
