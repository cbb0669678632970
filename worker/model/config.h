// What the forward pass needs to know of a model, read from a GGUF file's metadata.
#ifndef KVIST_WORKER_MODEL_CONFIG_H_
#define KVIST_WORKER_MODEL_CONFIG_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/gguf/gguf_file.h"
#include "worker/kernels/kernel_table.h"
#include "worker/kv/layout.h"

namespace kvist::worker {

enum class Activation : uint8_t { kSilu, kGeluTanh };

// Rotary embedding of a layer: pair i of position p turns by p / position_scale * base^(-i / pairs)
// / factor[i], where the factors (Llama 3's long context) are a tensor of the file, 1 where there
// is none.
struct RopeConfig {
  double base = 10000.0;
  double position_scale = 1.0;

  friend bool operator==(const RopeConfig&, const RopeConfig&) = default;
};

// A decoder-only transformer: RMS norms, grouped-query attention with rotary positions, gated
// feed-forward.
struct ModelConfig {
  std::string architecture;
  int64_t layers = 0;
  int64_t hidden = 0;
  int64_t feed_forward = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;  // divides heads
  int64_t head_dim = 0;  // need not be hidden / heads
  int64_t vocab = 0;     // tokens: ids are below it
  // Of the embedding and the output matrix. Files pad it: rows from `vocab` on mean no token.
  int64_t embedding_rows = 0;
  int64_t context_tokens = 0;  // the model's own limit
  float norm_epsilon = 0;
  Activation activation = Activation::kSilu;
  float embedding_scale = 1.0f;  // on the embedded tokens
  float attention_scale = 0;     // on q * k

  RopeStyle rope_style = RopeStyle::kHalves;
  int64_t rope_pairs = 0;    // 2 * pairs <= head_dim values rotate
  RopeConfig rope;           // layers that see everything
  RopeConfig windowed_rope;  // layers with a window

  int64_t window =
      0;  // positions that a windowed layer sees, the query's included; 0: no such layer
  std::vector<bool> windowed;  // per layer

  int64_t query_heads_per_kv_head() const { return heads / kv_heads; }
  int64_t query_cols() const { return heads * head_dim; }
  int64_t kv_cols() const { return kv_heads * head_dim; }
};

// The layers by attention span: first those that see everything, then the windowed ones; no empty
// group.
std::vector<LayerGroup> LayerGroupsOf(const ModelConfig& config);

// Metadata of one architecture: keys are "<architecture>.<suffix>". Thread-compatible.
class MetadataReader {
 public:
  // `file` outlives the reader.
  MetadataReader(const gguf::File& file, std::string architecture)
      : file_(file), architecture_(std::move(architecture)) {}

  std::string Key(std::string_view suffix) const;
  bool Has(std::string_view suffix) const { return file_.FindValue(Key(suffix)) != nullptr; }
  const gguf::File& file() const { return file_; }

  // A required count in [1, most]. INVALID_ARGUMENT naming the key if absent, of another type or
  // out of range.
  absl::StatusOr<int64_t> Count(std::string_view suffix, int64_t most) const;
  absl::StatusOr<int64_t> CountOr(std::string_view suffix, int64_t most, int64_t fallback) const;
  // A required finite number > 0. Errors as Count.
  absl::StatusOr<double> Positive(std::string_view suffix) const;
  absl::StatusOr<double> PositiveOr(std::string_view suffix, double fallback) const;

 private:
  const gguf::File& file_;
  std::string architecture_;
};

// Reads what all architectures have in common: shapes, norms, rope base and linear rope scaling, no
// windows, silu, attention scale 1 / sqrt(head_dim). INVALID_ARGUMENT naming the key or tensor;
// UNIMPLEMENTED naming the key for a mixture of experts or a rope scaling that is not known.
absl::StatusOr<ModelConfig> ReadCommonConfig(const MetadataReader& metadata);

}  // namespace kvist::worker

#endif  // KVIST_WORKER_MODEL_CONFIG_H_
