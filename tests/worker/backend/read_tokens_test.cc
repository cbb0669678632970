// A block that leaves the process before it is full: what others left in it stays behind.
#include <algorithm>
#include <cstddef>
#include <numeric>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/tiny_model.h"

namespace kvist::worker {
namespace {

// The bytes of the first group's block `block` after `tokens` tokens were written to it, over bytes
// `before`.
std::vector<std::byte> Written(Backend& backend, int32_t block, int32_t tokens, std::byte before) {
  const PoolSpec& pool = backend.pools()[0];
  std::vector<std::vector<int32_t>> tables(backend.model().groups.size(), {block});
  for (size_t g = 0; g < tables.size(); ++g) {
    const std::vector<std::byte> fill(static_cast<size_t>(backend.pools()[g].block_bytes), before);
    backend.WriteBlock(static_cast<int32_t>(g), block, fill);
  }
  std::vector<int32_t> ids(static_cast<size_t>(tokens));
  std::iota(ids.begin(), ids.end(), 5);
  SequenceSlice slice{.tokens = ids, .kv_format = pool.format, .logits_from = tokens};
  for (const auto& table : tables) slice.block_tables.push_back(table);
  Batch batch;
  batch.slices.push_back(std::move(slice));
  if (tokens > 0) {
    const auto logits = backend.Run(batch);
    EXPECT_TRUE(logits.ok()) << logits.status();
  }
  std::vector<std::byte> bytes(static_cast<size_t>(pool.block_bytes));
  backend.ReadBlock(0, block, bytes);
  return bytes;
}

TEST(ReadTokensTest, PositionsBehindTheTokensReadAsZerosInEveryFormat) {
  for (const KvFormat format : KnownKvFormats()) {
    for (const int32_t block_tokens : {16, 32}) {
      CpuBackendOptions options = kvist::testing::TinyOptions();
      options.kv_formats = {format};
      options.block_tokens = block_tokens;
      const auto backend = kvist::testing::OpenTinyModel("llama_k.Q4_K", options);
      for (const int32_t tokens : {0, 1, 7, 15, 16, 17, 31, 32}) {
        if (tokens > block_tokens) continue;
        const auto clean = Written(*backend, 3, tokens, std::byte{0});
        Written(*backend, 3, block_tokens, std::byte{0x5a});
        std::vector<std::byte> read(clean.size());
        backend->ReadTokens(0, 3, tokens, read);
        EXPECT_EQ(read, clean) << KvFormatName(format) << ", " << tokens << " of " << block_tokens;
      }
    }
  }
}

}  // namespace
}  // namespace kvist::worker
