// Memory of the forward pass, and the plan of one: which rows, which pieces of attention.
#include <algorithm>

#include "common/base/int_math.h"
#include "common/base/status.h"
#include "worker/backend/transformer.h"

namespace kvist::worker {
namespace {

// Queries of one piece of attention: enough to reuse a page of keys many times, few enough for many
// pieces.
constexpr int64_t kMaxItemQueries = 32;
// With fewer pieces than this per member, a kv head's query heads are shared out singly.
constexpr int64_t kLeastItemsPerMember = 4;
// A single query's splits: more (16k tokens) would take too much memory for their states; there,
// heads are shared out.
constexpr int64_t kMaxSplits = 64;

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
  const int64_t few_items = kLeastItemsPerMember * parts_.team->size();
  items_.reserve(
      pass_rows * static_cast<size_t>(config.kv_heads) +
      static_cast<size_t>(few_items * std::max(kMaxSplits, config.query_heads_per_kv_head())));
  KVIST_ASSIGN_OR_RETURN(
      partials_, Buffer<float>::Create(few_items * kMaxSplits * config.query_heads_per_kv_head() *
                                           (config.head_dim + 2),
                                       "attention's partial states"));

  const size_t stages = static_cast<size_t>(9 * config.layers + 2);
  stages_.reserve(stages);
  stage_items_.reserve(stages);

  KVIST_ASSIGN_OR_RETURN(stream_,
                         Buffer<float>::Create(kMaxPassRows * config.hidden, "activations"));
  KVIST_ASSIGN_OR_RETURN(normed_,
                         Buffer<float>::Create(kMaxPassRows * config.hidden, "activations"));
  KVIST_RETURN_IF_ERROR(
      quantized_.Allocate(kMaxPassRows, std::max(config.hidden, config.query_cols())));
  const int64_t attention_floats =
      AttentionScratchFloats(config.head_dim, config.query_heads_per_kv_head(), kMaxItemQueries);
  for (size_t member = 0; member < members; ++member) {
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
  memory.activations_bytes = stream_.taken_bytes() + normed_.taken_bytes() +
                             quantized_.taken_bytes() + qkv_.taken_bytes() +
                             attended_.taken_bytes() + branch_.taken_bytes() +
                             gated_.taken_bytes() + gated_quantized_.taken_bytes();
  memory.attention_bytes = partials_.taken_bytes();
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
  PlanAttention();
}

void Transformer::PlanAttention() {
  const ModelConfig& config = *parts_.config;
  int64_t whole_items = 0;
  for (const Segment& segment : segments_) {
    whole_items += CeilDiv(segment.count, kMaxItemQueries) * config.kv_heads;
  }
  const int64_t members = parts_.team->size();
  const bool few_items = members > 1 && whole_items < kLeastItemsPerMember * members;
  const int64_t group = config.query_heads_per_kv_head();
  // A single query of few positions is over before a piece more has been handed to another core.
  int64_t heads_of_query = group;
  while (heads_of_query > 1 &&
         (group % heads_of_query != 0 || heads_of_query * members > group * whole_items)) {
    --heads_of_query;
  }
  items_.clear();
  int64_t partial = 0;
  for (size_t i = 0; i < segments_.size(); ++i) {
    Segment& segment = segments_[i];
    if (few_items && SplitsAttention(segment)) {
      segment.splits = segment.first_position() / kSplitTokens + 1;
      segment.first_partial = partial;
      partial += segment.splits * config.heads * (config.head_dim + 2);
      for (int64_t split = 0; split < segment.splits; ++split) {
        for (int64_t head = 0; head < config.heads; head += group) {
          items_.push_back({.segment = static_cast<int32_t>(i),
                            .count = 1,
                            .first_head = head,
                            .heads = group,
                            .split = split});
        }
      }
      continue;
    }
    const int64_t heads_of_item = !few_items ? group : segment.count == 1 ? heads_of_query : 1;
    for (int64_t begin = 0; begin < segment.count; begin += kMaxItemQueries) {
      for (int64_t head = 0; head < config.heads; head += heads_of_item) {
        items_.push_back({.segment = static_cast<int32_t>(i),
                          .begin = begin,
                          .count = std::min(kMaxItemQueries, segment.count - begin),
                          .first_head = head,
                          .heads = heads_of_item});
      }
    }
  }
}

// The second split makes as many items as heads would, each of which reads its pages once for all
// heads.
bool Transformer::SplitsAttention(const Segment& segment) const {
  const int64_t splits = segment.first_position() / kSplitTokens + 1;
  return segment.count == 1 && splits >= 2 && splits <= kMaxSplits;
}

}  // namespace kvist::worker
