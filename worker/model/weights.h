// The weights of a model as the CPU kernels read them, and the list of tensors by which they are
// found in a file.
#ifndef KVIST_WORKER_MODEL_WEIGHTS_H_
#define KVIST_WORKER_MODEL_WEIGHTS_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/gguf/gguf_file.h"
#include "worker/kernels/packed_matrix.h"
#include "worker/model/config.h"
#include "worker/tensor/arena.h"

namespace kvist::worker {

// One layer. Vectors are nullptr where the architecture has none. Matrices are [outputs, inputs].
struct LayerWeights {
  const float* attention_norm = nullptr;       // [hidden]
  PackedMatrix query;                          // [query_cols, hidden]
  PackedMatrix key;                            // [kv_cols, hidden]
  PackedMatrix value;                          // [kv_cols, hidden]
  PackedMatrix attention_output;               // [hidden, query_cols]
  const float* query_bias = nullptr;           // [query_cols]
  const float* key_bias = nullptr;             // [kv_cols]
  const float* value_bias = nullptr;           // [kv_cols]
  const float* query_norm = nullptr;           // [head_dim], every head alike
  const float* key_norm = nullptr;             // [head_dim]
  const float* post_attention_norm = nullptr;  // [hidden]

  const float* feed_forward_norm = nullptr;       // [hidden]
  PackedMatrix gate;                              // [feed_forward, hidden]
  PackedMatrix up;                                // [feed_forward, hidden]
  PackedMatrix down;                              // [hidden, feed_forward]
  const float* post_feed_forward_norm = nullptr;  // [hidden]
};

// Token embeddings: [rows, hidden], dequantised a row at a time. Where the output matrix is the
// same tensor, rows are read out of its packed panels: kept as stored beside them they would count
// twice in memory (Gemma 3 270M: 180 of 250 MB), and a row's gather from a panel costs less than a
// microsecond. Otherwise the rows are kept as stored.
struct Embedding {
  PackedMatrix packed;  // data != nullptr: read from here
  gguf::TensorType type = gguf::TensorType::kF32;
  int64_t row_bytes = 0;
  const std::byte* rows = nullptr;

  // The values of row `id`. REQUIRES: 0 <= id < rows, out.size() == hidden.
  void Row(int64_t id, std::span<float> out) const;
};

// How weights are kept: as stored, or all as F32 (the reference numerics).
enum class WeightMode : uint8_t { kNative, kFloat32 };

struct Weights {
  Embedding embedding;
  std::vector<LayerWeights> layers;
  const float* output_norm = nullptr;   // [hidden]
  const float* rope_factors = nullptr;  // [rope_pairs] or nullptr
  PackedMatrix output;  // [rows, hidden]; of the embedding where the file has no output.weight

  int64_t parameters = 0;
  int64_t step_bytes = 0;  // read by each decode step: everything but the embedding's rows
  Arena arena;             // what all of the above point into
};

// A tensor that an architecture has, and where its values go: a matrix or a vector, never both.
struct TensorSpec {
  std::string name;
  int64_t rows = 1;
  int64_t cols = 0;
  bool required = true;
  PackedMatrix* matrix = nullptr;
  const float** vector = nullptr;
};

// Collects the specs of one model. Single-threaded. Names of layers are "blk.<layer>.<suffix>".
class TensorList {
 public:
  void Matrix(std::string name, int64_t rows, int64_t cols, PackedMatrix& to);
  void Vector(std::string name, int64_t size, const float*& to);
  void OptionalVector(std::string name, int64_t size, const float*& to);

  const std::vector<TensorSpec>& specs() const { return specs_; }

 private:
  std::vector<TensorSpec> specs_;
};
// "blk.<layer>.<suffix>"
std::string LayerTensorName(int64_t layer, std::string_view suffix);

// Runs body(i) for all i in [0, count), in any order, on the caller's threads; returns when all are
// done.
using ParallelFor = absl::FunctionRef<void(int64_t count, absl::FunctionRef<void(int64_t)> body)>;

// What the weights of a model come to before any is loaded; as the members of Weights.
struct WeightSizes {
  int64_t parameters = 0;
  int64_t step_bytes = 0;
  int64_t arena_bytes = 0;
};
// Errors as LoadWeights, memory apart.
absl::StatusOr<WeightSizes> PlanWeights(const gguf::File& file, const ModelConfig& config,
                                        WeightMode mode);

struct LoadOptions {
  WeightMode mode = WeightMode::kNative;
  // Called on the calling thread with (bytes of the file done, bytes in all).
  std::function<void(int64_t, int64_t)> progress;
};

// Loads the model of `file`: every tensor that its architecture lists must be there with the listed
// shape, and no other may. Packs on the threads of `parallel_for`. `file` may be closed afterwards.
// INVALID_ARGUMENT naming the tensor; RESOURCE_EXHAUSTED if there is no memory.
absl::StatusOr<std::unique_ptr<Weights>> LoadWeights(const gguf::File& file,
                                                     const ModelConfig& config,
                                                     ParallelFor parallel_for,
                                                     const LoadOptions& options);

}  // namespace kvist::worker

#endif  // KVIST_WORKER_MODEL_WEIGHTS_H_
