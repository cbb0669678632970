// Memory of the forward pass, and the plan of one: which rows, which pieces of attention.
#include <algorithm>

#include "common/base/int_math.h"
#include "common/base/status.h"
#include "worker/backend/transformer.h"

namespace kvist::worker {
namespace {

// Up to here every member computes all rows for itself: norm and quantising of a row take about as
// long as a barrier.
constexpr int64_t kMaxDuplicatedRows = 4;
// Queries of one piece of attention: enough to reuse a page of keys many times, few enough for many
// pieces.
constexpr int64_t kMaxItemQueries = 32;
// With fewer pieces than this per member, a kv head's query heads are shared out singly.
constexpr int64_t kLeastItemsPerMember = 4;

absl::Status AllocateRows(const ModelConfig& config, int64_t rows, RowBuffers& to) {
  KVIST_ASSIGN_OR_RETURN(to.stream, Buffer<float>::Create(rows * config.hidden, "activations"));
  KVIST_ASSIGN_OR_RETURN(to.normed, Buffer<float>::Create(rows * config.hidden, "activations"));
  return to.quantized.Allocate(rows, std::max(config.hidden, config.query_cols()));
}

bool TakesQuantized(const Weights& weights) {
  bool any = UsesQuantizedActivations(weights.output.type);
  for (const LayerWeights& layer : weights.layers) {
    for (const PackedMatrix* matrix :
         {&layer.query, &layer.key, &layer.value, &layer.attention_output, &layer.gate, &layer.up,
          &layer.down}) {
      any = any || UsesQuantizedActivations(matrix->type);
    }
  }
  return any;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Transformer>> Transformer::Create(const TransformerParts& parts,
                                                                 int64_t max_logit_rows) {
  std::unique_ptr<Transformer> transformer(new Transformer(parts));
  KVIST_RETURN_IF_ERROR(transformer->TakeMemory(max_logit_rows));
  return transformer;
}

absl::Status Transformer::TakeMemory(int64_t max_logit_rows) {
  const ModelConfig& config = *parts_.config;
  quantizes_ = TakesQuantized(*parts_.weights);
  group_of_layer_.resize(static_cast<size_t>(config.layers));
  index_in_group_.resize(static_cast<size_t>(config.layers));
  const std::vector<LayerGroup> groups = LayerGroupsOf(config);
  for (size_t group = 0; group < groups.size(); ++group) {
    for (size_t i = 0; i < groups[group].layers.size(); ++i) {
      const size_t layer = static_cast<size_t>(groups[group].layers[i]);
      group_of_layer_[layer] = static_cast<int32_t>(group);
      index_in_group_[layer] = static_cast<int32_t>(i);
    }
  }
  const size_t members = static_cast<size_t>(parts_.team->size());
  const size_t pass_rows = static_cast<size_t>(kMaxPassRows);
  segments_.reserve(pass_rows);
  row_facts_.reserve(pass_rows);
  items_.reserve(pass_rows * static_cast<size_t>(config.kv_heads) +
                 members *
                     static_cast<size_t>(kLeastItemsPerMember * config.query_heads_per_kv_head()));

  KVIST_RETURN_IF_ERROR(AllocateRows(config, kMaxPassRows, shared_rows_));
  const int64_t attention_floats =
      AttentionScratchFloats(config.head_dim, config.query_heads_per_kv_head(), kMaxItemQueries);
  for (size_t member = 0; member < members; ++member) {
    private_rows_.push_back(std::make_unique<RowBuffers>());
    KVIST_RETURN_IF_ERROR(AllocateRows(config, kMaxDuplicatedRows, *private_rows_.back()));
    scratch_.push_back(std::make_unique<LaneScratch>());
    LaneScratch& scratch = *scratch_.back();
    KVIST_ASSIGN_OR_RETURN(scratch.gate,
                           Buffer<float>::Create(kMaxPassRows * kGateCols, "activations"));
    KVIST_ASSIGN_OR_RETURN(scratch.up,
                           Buffer<float>::Create(kMaxPassRows * kGateCols, "activations"));
    KVIST_ASSIGN_OR_RETURN(scratch.attention,
                           Buffer<float>::Create(attention_floats, "attention scratch"));
  }
  qkv_stride_ = config.query_cols() + 2 * config.kv_cols();
  const int64_t query_floats = kMaxPassRows * config.query_cols();
  KVIST_ASSIGN_OR_RETURN(qkv_, Buffer<float>::Create(kMaxPassRows * qkv_stride_, "activations"));
  KVIST_ASSIGN_OR_RETURN(attended_, Buffer<float>::Create(query_floats, "activations"));
  KVIST_ASSIGN_OR_RETURN(branch_,
                         Buffer<float>::Create(kMaxPassRows * config.hidden, "activations"));
  KVIST_ASSIGN_OR_RETURN(gated_,
                         Buffer<float>::Create(kMaxPassRows * config.feed_forward, "activations"));
  KVIST_RETURN_IF_ERROR(gated_quantized_.Allocate(kMaxPassRows, config.feed_forward));
  KVIST_ASSIGN_OR_RETURN(wanted_,
                         Buffer<float>::Create(max_logit_rows * config.hidden, "activations"));
  KVIST_RETURN_IF_ERROR(wanted_quantized_.Allocate(max_logit_rows, config.hidden));
  logits_stride_ = RoundUp(config.embedding_rows, kPanelRows);
  KVIST_ASSIGN_OR_RETURN(logits_, Buffer<float>::Create(max_logit_rows * logits_stride_, "logits"));
  return absl::OkStatus();
}

TransformerMemory Transformer::memory() const {
  TransformerMemory memory;
  memory.activations_bytes = shared_rows_.taken_bytes() + qkv_.taken_bytes() +
                             attended_.taken_bytes() + branch_.taken_bytes() +
                             gated_.taken_bytes() + gated_quantized_.taken_bytes();
  for (const auto& rows : private_rows_) memory.activations_bytes += rows->taken_bytes();
  for (const auto& scratch : scratch_) {
    memory.activations_bytes += scratch->gate.taken_bytes() + scratch->up.taken_bytes();
    memory.attention_bytes += scratch->attention.taken_bytes();
  }
  memory.logits_bytes =
      wanted_.taken_bytes() + wanted_quantized_.taken_bytes() + logits_.taken_bytes();
  return memory;
}

void Transformer::PlanPass(const Batch& batch, size_t* slice, int64_t* token) {
  segments_.clear();
  row_facts_.clear();
  rows_ = 0;
  while (*slice < batch.slices.size() && rows_ < kMaxPassRows) {
    const SequenceSlice& from = batch.slices[*slice];
    const int64_t tokens = static_cast<int64_t>(from.tokens.size());
    const Segment segment{.slice = &from,
                          .begin = *token,
                          .count = std::min(tokens - *token, kMaxPassRows - rows_),
                          .row = rows_};
    for (int64_t i = segment.begin; i < segment.begin + segment.count; ++i) {
      row_facts_.push_back({.token = from.tokens[static_cast<size_t>(i)],
                            .segment = static_cast<int32_t>(segments_.size()),
                            .position = from.first_position + i,
                            .logit_row = i < from.logits_from ? -1 : wanted_rows_++});
    }
    segments_.push_back(segment);
    rows_ += segment.count;
    *token += segment.count;
    if (*token == tokens) {
      *token = 0;
      ++*slice;
    }
  }
  duplicated_ = rows_ <= kMaxDuplicatedRows;
  PlanAttention();
}

void Transformer::PlanAttention() {
  const ModelConfig& config = *parts_.config;
  int64_t whole_items = 0;
  for (const Segment& segment : segments_) {
    whole_items += CeilDiv(segment.count, kMaxItemQueries) * config.kv_heads;
  }
  const int64_t members = parts_.team->size();
  const bool split_heads = members > 1 && whole_items < kLeastItemsPerMember * members;
  const int64_t heads = split_heads ? 1 : config.query_heads_per_kv_head();
  items_.clear();
  for (size_t i = 0; i < segments_.size(); ++i) {
    for (int64_t begin = 0; begin < segments_[i].count; begin += kMaxItemQueries) {
      for (int64_t head = 0; head < config.heads; head += heads) {
        items_.push_back({.segment = static_cast<int32_t>(i),
                          .begin = begin,
                          .count = std::min(kMaxItemQueries, segments_[i].count - begin),
                          .first_head = head,
                          .heads = heads});
      }
    }
  }
}

}  // namespace kvist::worker
