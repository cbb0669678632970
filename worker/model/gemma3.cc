// Gemma 3, text: embeddings scaled by sqrt(hidden), norms before and after each half of a layer
// (the file holds 1 + w), q and k normed per head, GELU, and five layers with a window for each one
// without.
#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "worker/model/registry.h"

namespace kvist::worker {
namespace {

constexpr int64_t kDefaultPattern = 6;  // not in the files of 2025: every 6th layer sees everything
constexpr double kDefaultWindowedBase = 10000.0;  // nor is the rope base of the windowed layers
constexpr int64_t kLayersOf27B = 62;

// Older files say nothing, later ones the period or a flag per layer.
absl::Status ReadPattern(const MetadataReader& metadata, ModelConfig& config) {
  constexpr std::string_view kSuffix = "attention.sliding_window_pattern";
  const gguf::Value* value = metadata.file().FindValue(metadata.Key(kSuffix));
  const size_t layers = static_cast<size_t>(config.layers);
  if (value != nullptr && std::holds_alternative<std::vector<bool>>(*value)) {
    config.windowed = std::get<std::vector<bool>>(*value);
    if (config.windowed.size() == layers) return absl::OkStatus();
    return InvalidField(metadata.Key(kSuffix), absl::StrCat("has ", config.windowed.size(),
                                                            " entries for ", layers, " layers"));
  }
  KVIST_ASSIGN_OR_RETURN(const int64_t period,
                         metadata.CountOr(kSuffix, config.layers, kDefaultPattern));
  for (size_t layer = 0; layer < layers; ++layer) {
    config.windowed[layer] = (static_cast<int64_t>(layer) + 1) % period != 0;
  }
  return absl::OkStatus();
}

absl::StatusOr<ModelConfig> ReadConfig(const MetadataReader& metadata) {
  KVIST_ASSIGN_OR_RETURN(ModelConfig config, ReadCommonConfig(metadata));
  if (metadata.Has("final_logit_softcapping")) {
    KVIST_ASSIGN_OR_RETURN(const double cap,
                           metadata.file().GetFloat(metadata.Key("final_logit_softcapping")));
    if (cap != 0) {
      return absl::UnimplementedError(
          absl::StrCat(metadata.Key("final_logit_softcapping"), ": not supported"));
    }
  }
  config.activation = Activation::kGeluTanh;
  config.embedding_scale = static_cast<float>(std::sqrt(static_cast<double>(config.hidden)));
  KVIST_ASSIGN_OR_RETURN(config.window,
                         metadata.Count("attention.sliding_window", config.context_tokens));
  KVIST_RETURN_IF_ERROR(ReadPattern(metadata, config));
  KVIST_ASSIGN_OR_RETURN(const double base,
                         metadata.PositiveOr("rope.freq_base_swa", kDefaultWindowedBase));
  config.windowed_rope = RopeConfig{.base = base, .position_scale = 1.0};
  if (config.layers == kLayersOf27B) {
    // The 27B model alone divides by sqrt(hidden / heads); its file has no key for that.
    const double width = static_cast<double>(config.hidden) / static_cast<double>(config.heads);
    config.attention_scale = static_cast<float>(1.0 / std::sqrt(width));
  }
  return config;
}

void ListLayer(const ModelConfig& config, int64_t layer, LayerWeights& to, TensorList& list) {
  ListDecoderLayer(config, layer, to, list);
  list.Vector(LayerTensorName(layer, "attn_q_norm.weight"), config.head_dim, to.query_norm);
  list.Vector(LayerTensorName(layer, "attn_k_norm.weight"), config.head_dim, to.key_norm);
  list.Vector(LayerTensorName(layer, "post_attention_norm.weight"), config.hidden,
              to.post_attention_norm);
  list.Vector(LayerTensorName(layer, "post_ffw_norm.weight"), config.hidden,
              to.post_feed_forward_norm);
}

}  // namespace

const Architecture kGemma3{"gemma3", ReadConfig, ListLayer};

}  // namespace kvist::worker
