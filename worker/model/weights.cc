#include "worker/model/weights.h"

#include <algorithm>
#include <cstring>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/check.h"
#include "common/base/int_math.h"
#include "common/base/status.h"
#include "worker/model/registry.h"
#include "worker/tensor/dequantize.h"

namespace kvist::worker {
namespace {

constexpr int64_t kAlignmentBytes = 64;
// A task of packing: some 100 KB of weights, so that a matrix keeps all threads busy and none waits
// long for the last.
constexpr int64_t kPanelsPerTask = 4;
// Between two calls of the progress callback.
constexpr int64_t kTasksPerReport = 256;
constexpr std::string_view kEmbeddingName = "token_embd.weight";
constexpr std::string_view kOutputName = "output.weight";

absl::Status TensorError(const std::string& name, std::string_view problem) {
  return absl::InvalidArgumentError(absl::StrCat("tensor ", name, ": ", ToAbsl(problem)));
}

// A spec with its tensor and its place in the arena.
struct Placement {
  const TensorSpec* spec = nullptr;
  const gguf::TensorInfo* tensor = nullptr;
  gguf::TensorType packed_type = gguf::TensorType::kF32;
  int64_t offset = 0;
  int64_t bytes = 0;
};

absl::StatusOr<int64_t> StoredBytes(const TensorSpec& spec, gguf::TensorType type) {
  if (spec.matrix == nullptr) return spec.cols * static_cast<int64_t>(sizeof(float));
  absl::StatusOr<int64_t> bytes = PackedBytes(type, spec.rows, spec.cols);
  if (!bytes.ok()) return TensorError(spec.name, std::string(bytes.status().message()));
  return bytes;
}

absl::Status CheckShape(const TensorSpec& spec, const gguf::TensorInfo& tensor) {
  std::vector<int64_t> want = {spec.cols};
  if (spec.matrix != nullptr) want.push_back(spec.rows);
  std::vector<int64_t> have = tensor.dims;
  while (have.size() > want.size() && have.back() == 1) have.pop_back();
  if (have == want) return absl::OkStatus();
  return TensorError(spec.name, absl::StrCat("its shape is [", absl::StrJoin(have, ", "),
                                             "], expected [", absl::StrJoin(want, ", "), "]"));
}

// Every listed tensor is there with its shape, and nothing else is.
absl::StatusOr<std::vector<Placement>> PlaceTensors(const gguf::File& file, const TensorList& list,
                                                    WeightMode mode) {
  std::vector<Placement> placements;
  absl::flat_hash_set<std::string> known = {std::string(kEmbeddingName)};
  int64_t offset = 0;
  for (const TensorSpec& spec : list.specs()) {
    known.insert(spec.name);
    Placement placement{.spec = &spec, .tensor = file.FindTensor(spec.name)};
    if (placement.tensor == nullptr) {
      if (spec.required) return TensorError(spec.name, "missing");
      continue;
    }
    KVIST_RETURN_IF_ERROR(CheckShape(spec, *placement.tensor));
    if (mode == WeightMode::kNative) placement.packed_type = placement.tensor->type;
    KVIST_ASSIGN_OR_RETURN(placement.bytes, StoredBytes(spec, placement.packed_type));
    placement.offset = offset;
    offset += RoundUp(placement.bytes, kAlignmentBytes);
    placements.push_back(placement);
  }
  for (const gguf::TensorInfo& tensor : file.tensors()) {
    if (!known.contains(tensor.name))
      return TensorError(tensor.name, "not known to this architecture");
  }
  return placements;
}

// Packs panels [first, last) of the placement's matrix into `out`, the whole matrix's bytes.
void PackTask(const Placement& placement, int64_t first, int64_t last, std::span<std::byte> out) {
  const TensorSpec& spec = *placement.spec;
  const gguf::TensorInfo& tensor = *placement.tensor;
  if (placement.packed_type == tensor.type) {
    return PackPanels(tensor.type, spec.rows, spec.cols, tensor.data, first, last, out);
  }
  // Panels are independent, so these rows alone are a matrix whose packed bytes are a part of the
  // whole's.
  const int64_t first_row = first * kPanelRows;
  const int64_t rows = std::min(last * kPanelRows, spec.rows) - first_row;
  const int64_t row_bytes = static_cast<int64_t>(tensor.data.size()) / spec.rows;
  std::vector<float> values(static_cast<size_t>(rows * spec.cols));
  Dequantize(tensor.type,
             tensor.data.subspan(static_cast<size_t>(first_row * row_bytes),
                                 static_cast<size_t>(rows * row_bytes)),
             values);
  const size_t panel_bytes = static_cast<size_t>(placement.bytes / CeilDiv(spec.rows, kPanelRows));
  PackPanels(placement.packed_type, rows, spec.cols, std::as_bytes(std::span<const float>(values)),
             0, last - first,
             out.subspan(static_cast<size_t>(first) * panel_bytes,
                         static_cast<size_t>(last - first) * panel_bytes));
}

void FillMatrix(const Placement& placement, std::byte* at, ParallelFor parallel_for,
                absl::FunctionRef<void(double)> report) {
  const TensorSpec& spec = *placement.spec;
  const int64_t panels = CeilDiv(spec.rows, kPanelRows);
  const int64_t tasks = CeilDiv(panels, kPanelsPerTask);
  for (int64_t begin = 0; begin < tasks; begin += kTasksPerReport) {
    const int64_t end = std::min(tasks, begin + kTasksPerReport);
    parallel_for(end - begin, [&](int64_t i) {
      const int64_t first = (begin + i) * kPanelsPerTask;
      PackTask(placement, first, std::min(panels, first + kPanelsPerTask),
               {at, static_cast<size_t>(placement.bytes)});
    });
    report(static_cast<double>(end) / static_cast<double>(tasks));
  }
  *spec.matrix = PackedMatrix{.type = placement.packed_type,
                              .rows = spec.rows,
                              .cols = spec.cols,
                              .data = at,
                              .panel_bytes = placement.bytes / panels};
}

void FillVector(const Placement& placement, std::byte* at) {
  float* values = reinterpret_cast<float*>(at);
  Dequantize(placement.tensor->type, placement.tensor->data,
             {values, static_cast<size_t>(placement.spec->cols)});
  *placement.spec->vector = values;
}

// Which tensors the model has. Tied: the file has no output matrix, the embedding serves.
TensorList ListTensors(const Architecture& architecture, const ModelConfig& config, bool tied,
                       Weights& to) {
  TensorList list;
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    architecture.list_layer(config, layer, to.layers[static_cast<size_t>(layer)], list);
  }
  list.Vector("output_norm.weight", config.hidden, to.output_norm);
  list.Matrix(std::string(tied ? kEmbeddingName : kOutputName), config.embedding_rows,
              config.hidden, to.output);
  list.OptionalVector("rope_freqs.weight", config.rope_pairs, to.rope_factors);
  return list;
}

absl::Status CheckEmbedding(const gguf::TensorInfo& tensor, const ModelConfig& config) {
  PackedMatrix unused;
  return CheckShape({.name = tensor.name,
                     .rows = config.embedding_rows,
                     .cols = config.hidden,
                     .matrix = &unused},
                    tensor);
}

// All of a model's tensors with their places. Points into the file and into the Weights that the
// specs fill.
struct WeightPlan {
  TensorList list;
  std::vector<Placement> placements;
  const gguf::TensorInfo* embedding = nullptr;
  bool tied = false;  // the embedding is the output matrix
  int64_t packed_bytes = 0;
  WeightSizes sizes;
};

absl::StatusOr<WeightPlan> MakePlan(const gguf::File& file, const ModelConfig& config,
                                    WeightMode mode, Weights& to) {
  WeightPlan plan;
  KVIST_ASSIGN_OR_RETURN(const Architecture* architecture, FindArchitecture(file));
  plan.embedding = file.FindTensor(kEmbeddingName);
  if (plan.embedding == nullptr) return TensorError(std::string(kEmbeddingName), "missing");
  KVIST_RETURN_IF_ERROR(CheckEmbedding(*plan.embedding, config));
  to.layers.resize(static_cast<size_t>(config.layers));
  plan.tied = file.FindTensor(kOutputName) == nullptr;
  plan.list = ListTensors(*architecture, config, plan.tied, to);
  KVIST_ASSIGN_OR_RETURN(plan.placements, PlaceTensors(file, plan.list, mode));
  for (const Placement& placement : plan.placements) {
    plan.sizes.step_bytes += placement.bytes;
    plan.sizes.parameters += placement.spec->rows * placement.spec->cols;
  }
  plan.packed_bytes =
      plan.placements.back().offset + RoundUp(plan.placements.back().bytes, kAlignmentBytes);
  plan.sizes.arena_bytes = plan.packed_bytes;
  if (!plan.tied) {
    plan.sizes.arena_bytes += static_cast<int64_t>(plan.embedding->data.size());
    plan.sizes.parameters += config.embedding_rows * config.hidden;
  }
  return plan;
}

}  // namespace

void Embedding::Row(int64_t id, std::span<float> out) const {
  if (packed.data != nullptr) return UnpackRow(packed, id, out);
  Dequantize(type, {rows + id * row_bytes, static_cast<size_t>(row_bytes)}, out);
}

void TensorList::Matrix(std::string name, int64_t rows, int64_t cols, PackedMatrix& to) {
  specs_.push_back({.name = std::move(name), .rows = rows, .cols = cols, .matrix = &to});
}

void TensorList::Vector(std::string name, int64_t size, const float*& to) {
  specs_.push_back({.name = std::move(name), .cols = size, .vector = &to});
}

void TensorList::OptionalVector(std::string name, int64_t size, const float*& to) {
  specs_.push_back({.name = std::move(name), .cols = size, .required = false, .vector = &to});
}

std::string LayerTensorName(int64_t layer, std::string_view suffix) {
  return absl::StrCat("blk.", layer, ".", ToAbsl(suffix));
}

absl::StatusOr<WeightSizes> PlanWeights(const gguf::File& file, const ModelConfig& config,
                                        WeightMode mode) {
  Weights unused;
  KVIST_ASSIGN_OR_RETURN(const WeightPlan plan, MakePlan(file, config, mode, unused));
  return plan.sizes;
}

absl::StatusOr<std::unique_ptr<Weights>> LoadWeights(const gguf::File& file,
                                                     const ModelConfig& config,
                                                     ParallelFor parallel_for,
                                                     const LoadOptions& options) {
  auto weights = std::make_unique<Weights>();
  KVIST_ASSIGN_OR_RETURN(const WeightPlan plan, MakePlan(file, config, options.mode, *weights));
  weights->parameters = plan.sizes.parameters;
  weights->step_bytes = plan.sizes.step_bytes;
  KVIST_ASSIGN_OR_RETURN(weights->arena, Arena::Create(plan.sizes.arena_bytes, "weights"));

  int64_t file_bytes = 0;
  for (const gguf::TensorInfo& tensor : file.tensors())
    file_bytes += static_cast<int64_t>(tensor.data.size());
  int64_t done_bytes = 0;
  const auto report = [&](const gguf::TensorInfo& tensor, double part) {
    const int64_t of_tensor = static_cast<int64_t>(part * static_cast<double>(tensor.data.size()));
    if (options.progress) options.progress(done_bytes + of_tensor, file_bytes);
  };
  for (const Placement& placement : plan.placements) {
    std::byte* at = weights->arena.data() + placement.offset;
    if (placement.spec->matrix != nullptr) {
      FillMatrix(placement, at, parallel_for,
                 [&](double part) { report(*placement.tensor, part); });
    } else {
      FillVector(placement, at);
      report(*placement.tensor, 1.0);
    }
    done_bytes += static_cast<int64_t>(placement.tensor->data.size());
  }
  Embedding& rows = weights->embedding;
  if (plan.tied) {
    rows.packed = weights->output;
  } else {
    const std::span<const std::byte> stored = plan.embedding->data;
    std::byte* at = weights->arena.data() + plan.packed_bytes;
    std::memcpy(at, stored.data(), stored.size());
    rows.type = plan.embedding->type;
    rows.row_bytes = static_cast<int64_t>(stored.size()) / config.embedding_rows;
    rows.rows = at;
    report(*plan.embedding, 1.0);
  }
  return weights;
}

}  // namespace kvist::worker
