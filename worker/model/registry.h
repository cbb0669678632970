// The architectures that can run: one row each, one file each.
#ifndef KVIST_WORKER_MODEL_REGISTRY_H_
#define KVIST_WORKER_MODEL_REGISTRY_H_

#include <span>
#include <string_view>

#include "absl/status/statusor.h"
#include "common/gguf/gguf_file.h"
#include "worker/model/config.h"
#include "worker/model/weights.h"

namespace kvist::worker {

struct Architecture {
  std::string_view name;  // general.architecture
  // Errors as ReadCommonConfig.
  absl::StatusOr<ModelConfig> (*read_config)(const MetadataReader& metadata);
  // Lists the tensors of layer `layer` and where they go in `to`.
  void (*list_layer)(const ModelConfig& config, int64_t layer, LayerWeights& to, TensorList& list);
};

std::span<const Architecture> Architectures();
// INVALID_ARGUMENT naming the key and the architectures known.
absl::StatusOr<const Architecture*> FindArchitecture(const gguf::File& file);
// The config of the model in `file`, by its architecture's row.
absl::StatusOr<ModelConfig> ReadModelConfig(const gguf::File& file);

// The tensors of the plain decoder layer that every architecture here extends: two norms, q, k, v,
// o, gate, up, down.
void ListDecoderLayer(const ModelConfig& config, int64_t layer, LayerWeights& to, TensorList& list);

extern const Architecture kLlama;
extern const Architecture kQwen2;
extern const Architecture kQwen3;
extern const Architecture kGemma3;

}  // namespace kvist::worker

#endif  // KVIST_WORKER_MODEL_REGISTRY_H_
