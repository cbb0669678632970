#include "worker/model/registry.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"

namespace kvist::worker {

std::span<const Architecture> Architectures() {
  static const Architecture rows[] = {kLlama, kQwen2, kQwen3, kGemma3};
  return rows;
}

absl::StatusOr<const Architecture*> FindArchitecture(const gguf::File& file) {
  constexpr std::string_view kKey = "general.architecture";
  if (file.FindValue(kKey) == nullptr) return InvalidField(kKey, "missing");
  KVIST_ASSIGN_OR_RETURN(const std::string name, file.GetString(kKey));
  std::string known;
  for (const Architecture& row : Architectures()) {
    if (row.name == name) return &row;
    absl::StrAppend(&known, known.empty() ? "" : ", ", ToAbsl(row.name));
  }
  return InvalidField(kKey, absl::StrCat("\"", name, "\" is not supported; known: ", known));
}

absl::StatusOr<ModelConfig> ReadModelConfig(const gguf::File& file) {
  KVIST_ASSIGN_OR_RETURN(const Architecture* architecture, FindArchitecture(file));
  KVIST_ASSIGN_OR_RETURN(ModelConfig config, architecture->read_config(MetadataReader(
                                                 file, std::string(architecture->name))));
  config.architecture = std::string(architecture->name);
  return config;
}

void ListDecoderLayer(const ModelConfig& config, int64_t layer, LayerWeights& to,
                      TensorList& list) {
  const auto name = [layer](std::string_view suffix) { return LayerTensorName(layer, suffix); };
  list.Vector(name("attn_norm.weight"), config.hidden, to.attention_norm);
  list.Matrix(name("attn_q.weight"), config.query_cols(), config.hidden, to.query);
  list.Matrix(name("attn_k.weight"), config.kv_cols(), config.hidden, to.key);
  list.Matrix(name("attn_v.weight"), config.kv_cols(), config.hidden, to.value);
  list.Matrix(name("attn_output.weight"), config.hidden, config.query_cols(), to.attention_output);
  list.Vector(name("ffn_norm.weight"), config.hidden, to.feed_forward_norm);
  list.Matrix(name("ffn_gate.weight"), config.feed_forward, config.hidden, to.gate);
  list.Matrix(name("ffn_up.weight"), config.feed_forward, config.hidden, to.up);
  list.Matrix(name("ffn_down.weight"), config.hidden, config.feed_forward, to.down);
}

}  // namespace kvist::worker
