#include "worker/model/config.h"

#include <cmath>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "common/base/int_math.h"
#include "common/base/status.h"

namespace kvist::worker {
namespace {

// Far beyond any model of today; they keep every product of two shapes inside 64 bits.
constexpr int64_t kMaxLayers = 1024;
constexpr int64_t kMaxWidth = int64_t{1} << 20;
constexpr int64_t kMaxHeads = 4096;
constexpr int64_t kMaxHeadDim = 4096;
constexpr int64_t kMaxVocab = int64_t{1} << 24;
constexpr int64_t kMaxContextTokens = int64_t{1} << 26;

constexpr std::string_view kTokensKey = "tokenizer.ggml.tokens";

absl::Status CheckMultiple(const std::string& key, int64_t value, int64_t factor) {
  if (value % factor == 0) return absl::OkStatus();
  return InvalidField(key, absl::StrCat(value, " is not a multiple of ", factor));
}

absl::Status ReadShape(const MetadataReader& metadata, ModelConfig& config) {
  KVIST_ASSIGN_OR_RETURN(config.layers, metadata.Count("block_count", kMaxLayers));
  KVIST_ASSIGN_OR_RETURN(config.context_tokens,
                         metadata.Count("context_length", kMaxContextTokens));
  KVIST_ASSIGN_OR_RETURN(config.hidden, metadata.Count("embedding_length", kMaxWidth));
  KVIST_ASSIGN_OR_RETURN(config.feed_forward, metadata.Count("feed_forward_length", kMaxWidth));
  KVIST_ASSIGN_OR_RETURN(config.heads, metadata.Count("attention.head_count", kMaxHeads));
  KVIST_ASSIGN_OR_RETURN(config.kv_heads,
                         metadata.CountOr("attention.head_count_kv", kMaxHeads, config.heads));
  KVIST_RETURN_IF_ERROR(
      CheckMultiple(metadata.Key("attention.head_count"), config.heads, config.kv_heads));
  if (!metadata.Has("attention.key_length")) {
    KVIST_RETURN_IF_ERROR(
        CheckMultiple(metadata.Key("embedding_length"), config.hidden, config.heads));
  }
  KVIST_ASSIGN_OR_RETURN(config.head_dim, metadata.CountOr("attention.key_length", kMaxHeadDim,
                                                           config.hidden / config.heads));
  KVIST_ASSIGN_OR_RETURN(const int64_t value_dim,
                         metadata.CountOr("attention.value_length", kMaxHeadDim, config.head_dim));
  if (value_dim != config.head_dim) {
    return InvalidField(metadata.Key("attention.value_length"),
                        absl::StrCat("is ", value_dim, ", but keys have ", config.head_dim));
  }
  KVIST_RETURN_IF_ERROR(
      CheckMultiple(metadata.Key("embedding_length"), config.hidden, kQuantBlock));
  KVIST_RETURN_IF_ERROR(
      CheckMultiple(metadata.Key("feed_forward_length"), config.feed_forward, kQuantBlock));
  KVIST_RETURN_IF_ERROR(CheckMultiple(metadata.Key("attention.key_length"), config.head_dim, 8));
  return CheckMultiple(metadata.Key("attention.head_count") + " * key_length", config.query_cols(),
                       kQuantBlock);
}

absl::Status ReadRope(const MetadataReader& metadata, ModelConfig& config) {
  KVIST_ASSIGN_OR_RETURN(config.rope.base, metadata.PositiveOr("rope.freq_base", 10000.0));
  KVIST_ASSIGN_OR_RETURN(const int64_t dimensions,
                         metadata.CountOr("rope.dimension_count", kMaxHeadDim, config.head_dim));
  if (dimensions > config.head_dim || dimensions % 2 != 0) {
    return InvalidField(
        metadata.Key("rope.dimension_count"),
        absl::StrCat(dimensions, " is odd or more than the head's ", config.head_dim));
  }
  config.rope_pairs = dimensions / 2;
  if (metadata.Has("rope.scaling.type")) {
    const std::string key = metadata.Key("rope.scaling.type");
    KVIST_ASSIGN_OR_RETURN(const std::string type, metadata.file().GetString(key));
    if (type == "linear") {
      KVIST_ASSIGN_OR_RETURN(config.rope.position_scale, metadata.Positive("rope.scaling.factor"));
    } else if (type != "none") {
      return absl::UnimplementedError(
          absl::StrCat(key, ": \"", type, "\" is not supported (none, linear)"));
    }
  } else {
    KVIST_ASSIGN_OR_RETURN(config.rope.position_scale,
                           metadata.PositiveOr("rope.scale_linear", 1.0));
  }
  config.windowed_rope = config.rope;
  return absl::OkStatus();
}

absl::Status ReadVocab(const MetadataReader& metadata, ModelConfig& config) {
  const gguf::TensorInfo* embedding = metadata.file().FindTensor("token_embd.weight");
  if (embedding == nullptr) return absl::InvalidArgumentError("tensor token_embd.weight: missing");
  config.embedding_rows = embedding->rows();
  if (config.embedding_rows < 1 || config.embedding_rows > kMaxVocab) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor token_embd.weight: ", config.embedding_rows, " rows"));
  }
  config.vocab = config.embedding_rows;
  if (metadata.file().FindValue(kTokensKey) == nullptr) return absl::OkStatus();
  KVIST_ASSIGN_OR_RETURN(const std::vector<std::string>* tokens,
                         metadata.file().GetStrings(kTokensKey));
  config.vocab = static_cast<int64_t>(tokens->size());
  if (config.vocab < 1 || config.vocab > config.embedding_rows) {
    return InvalidField(kTokensKey,
                        absl::StrCat(config.vocab, " tokens for the ", config.embedding_rows,
                                     " rows of tensor token_embd.weight"));
  }
  return absl::OkStatus();
}

}  // namespace

std::vector<LayerGroup> LayerGroupsOf(const ModelConfig& config) {
  std::vector<LayerGroup> groups;
  for (const bool windowed : {false, true}) {
    LayerGroup group{.layers = {},
                     .kv_heads = config.kv_heads,
                     .head_dim = config.head_dim,
                     .window = windowed ? config.window : 0};
    for (int64_t layer = 0; layer < config.layers; ++layer) {
      if (config.windowed[static_cast<size_t>(layer)] == windowed) {
        group.layers.push_back(static_cast<int32_t>(layer));
      }
    }
    if (!group.layers.empty()) groups.push_back(std::move(group));
  }
  return groups;
}

std::string MetadataReader::Key(std::string_view suffix) const {
  return absl::StrCat(architecture_, ".", ToAbsl(suffix));
}

absl::StatusOr<int64_t> MetadataReader::Count(std::string_view suffix, int64_t most) const {
  const std::string key = Key(suffix);
  if (file_.FindValue(key) == nullptr) return InvalidField(key, "missing");
  KVIST_ASSIGN_OR_RETURN(const int64_t value, file_.GetInt(key));
  if (value < 1 || value > most) {
    return InvalidField(key, absl::StrCat(value, " is not in [1, ", most, "]"));
  }
  return value;
}

absl::StatusOr<int64_t> MetadataReader::CountOr(std::string_view suffix, int64_t most,
                                                int64_t fallback) const {
  return Has(suffix) ? Count(suffix, most) : fallback;
}

absl::StatusOr<double> MetadataReader::Positive(std::string_view suffix) const {
  const std::string key = Key(suffix);
  if (file_.FindValue(key) == nullptr) return InvalidField(key, "missing");
  KVIST_ASSIGN_OR_RETURN(const double value, file_.GetFloat(key));
  if (!std::isfinite(value) || value <= 0) {
    return InvalidField(key, absl::StrCat(value, " is not a positive number"));
  }
  return value;
}

absl::StatusOr<double> MetadataReader::PositiveOr(std::string_view suffix, double fallback) const {
  return Has(suffix) ? Positive(suffix) : fallback;
}

absl::StatusOr<ModelConfig> ReadCommonConfig(const MetadataReader& metadata) {
  ModelConfig config;
  for (const char* suffix : {"expert_count", "expert_used_count"}) {
    if (!metadata.Has(suffix)) continue;
    KVIST_ASSIGN_OR_RETURN(const int64_t experts, metadata.file().GetInt(metadata.Key(suffix)));
    if (experts > 0) {
      return absl::UnimplementedError(
          absl::StrCat(metadata.Key(suffix), ": a mixture of experts is not supported"));
    }
  }
  KVIST_RETURN_IF_ERROR(ReadShape(metadata, config));
  KVIST_RETURN_IF_ERROR(ReadVocab(metadata, config));
  KVIST_RETURN_IF_ERROR(ReadRope(metadata, config));
  KVIST_ASSIGN_OR_RETURN(const double epsilon,
                         metadata.Positive("attention.layer_norm_rms_epsilon"));
  config.norm_epsilon = static_cast<float>(epsilon);
  config.attention_scale =
      static_cast<float>(1.0 / std::sqrt(static_cast<double>(config.head_dim)));
  config.windowed.assign(static_cast<size_t>(config.layers), false);
  return config;
}

}  // namespace kvist::worker
