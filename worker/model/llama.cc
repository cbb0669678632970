// Llama 2 and 3, SmolLM2. The file holds q and k permuted so that rotary pairs are neighbours;
// Llama 3's long-context scaling is the tensor rope_freqs.weight.
#include "common/base/status.h"
#include "worker/model/registry.h"

namespace kvist::worker {
namespace {

absl::StatusOr<ModelConfig> ReadConfig(const MetadataReader& metadata) {
  KVIST_ASSIGN_OR_RETURN(ModelConfig config, ReadCommonConfig(metadata));
  config.rope_style = RopeStyle::kInterleaved;
  return config;
}

}  // namespace

const Architecture kLlama{"llama", ReadConfig, ListDecoderLayer};

}  // namespace kvist::worker
