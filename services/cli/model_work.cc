#include "services/cli/model_work.h"

#include <algorithm>

namespace kvist::services {

int64_t PrefillMultiplyAdds(const worker::ModelConfig& config, int64_t tokens) {
  if (tokens == 0) return 0;
  const int64_t layer_weights =
      config.hidden * (2 * config.query_cols() + 2 * config.kv_cols() + 3 * config.feed_forward);
  int64_t work = tokens * config.layers * layer_weights + config.embedding_rows * config.hidden;
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    // Position p sees p + 1 positions, in a windowed layer `window` at most.
    const bool windowed = config.windowed[static_cast<size_t>(layer)];
    const int64_t growing = windowed ? std::min(tokens, config.window) : tokens;
    const int64_t seen = growing * (growing + 1) / 2 + (tokens - growing) * growing;
    work += 2 * seen * config.query_cols();
  }
  return work;
}

}  // namespace kvist::services
