// Qwen 2 and 2.5: biases on q, k and v.
#include "worker/model/registry.h"

namespace kvist::worker {
namespace {

void ListLayer(const ModelConfig& config, int64_t layer, LayerWeights& to, TensorList& list) {
  ListDecoderLayer(config, layer, to, list);
  list.Vector(LayerTensorName(layer, "attn_q.bias"), config.query_cols(), to.query_bias);
  list.Vector(LayerTensorName(layer, "attn_k.bias"), config.kv_cols(), to.key_bias);
  list.Vector(LayerTensorName(layer, "attn_v.bias"), config.kv_cols(), to.value_bias);
}

}  // namespace

const Architecture kQwen2{"qwen2", ReadCommonConfig, ListLayer};

}  // namespace kvist::worker
