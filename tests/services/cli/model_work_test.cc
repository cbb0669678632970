#include "services/cli/model_work.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace kvist::services {
namespace {

worker::ModelConfig SmallConfig() {
  worker::ModelConfig config;
  config.layers = 2;
  config.hidden = 64;
  config.feed_forward = 128;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 16;
  config.embedding_rows = 300;
  config.window = 5;
  config.windowed = {false, true};
  return config;
}

// Product by product, position by position.
int64_t ByDefinition(const worker::ModelConfig& config, int64_t tokens) {
  int64_t work = 0;
  for (int64_t p = 0; p < tokens; ++p) {
    for (int64_t layer = 0; layer < config.layers; ++layer) {
      work += config.hidden * config.query_cols();      // q
      work += 2 * config.hidden * config.kv_cols();     // k, v
      work += config.query_cols() * config.hidden;      // output
      work += 3 * config.hidden * config.feed_forward;  // gate, up, down
      int64_t seen = p + 1;
      if (config.windowed[static_cast<size_t>(layer)]) seen = std::min(seen, config.window);
      work += 2 * config.heads * config.head_dim * seen;  // scores, weighted sum
    }
  }
  return work + config.embedding_rows * config.hidden;
}

TEST(PrefillMultiplyAddsTest, IsTheSumOverProductsAndPositions) {
  for (const int64_t tokens : {1, 4, 5, 6, 100}) {
    EXPECT_EQ(PrefillMultiplyAdds(SmallConfig(), tokens), ByDefinition(SmallConfig(), tokens))
        << tokens;
  }
  EXPECT_EQ(PrefillMultiplyAdds(SmallConfig(), 0), 0);
}

}  // namespace
}  // namespace kvist::services
