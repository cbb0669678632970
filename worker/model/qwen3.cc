// Qwen 3: q and k are normed per head before they turn; head_dim is attention.key_length, not
// hidden / heads.
#include "worker/model/registry.h"

namespace kvist::worker {
namespace {

void ListLayer(const ModelConfig& config, int64_t layer, LayerWeights& to, TensorList& list) {
  ListDecoderLayer(config, layer, to, list);
  list.Vector(LayerTensorName(layer, "attn_q_norm.weight"), config.head_dim, to.query_norm);
  list.Vector(LayerTensorName(layer, "attn_k_norm.weight"), config.head_dim, to.key_norm);
}

}  // namespace

const Architecture kQwen3{"qwen3", ReadCommonConfig, ListLayer};

}  // namespace kvist::worker
