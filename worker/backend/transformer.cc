// The stages of a pass. An item writes only its own part of a buffer that all share, and reads only
// what earlier stages completed: rows (embedding, norms, quantising) go a few at a time, matrix
// products by panels of weights, attention by pieces. Which member takes an item makes no
// difference to the bits: each value is one chain of operations.
#include "worker/backend/transformer.h"

#include <algorithm>

#include "common/base/int_math.h"
#include "worker/kv/concat_cache.h"

namespace kvist::worker {
namespace {

// Panels [first, last) as a matrix of their own.
PackedMatrix PartOf(const PackedMatrix& matrix, int64_t first, int64_t last) {
  PackedMatrix part = matrix;
  part.rows = std::min(matrix.rows, last * kPanelRows) - first * kPanelRows;
  part.data = matrix.data + first * matrix.panel_bytes;
  return part;
}

}  // namespace

Logits Transformer::Run(const Batch& batch) {
  size_t slice = 0;
  int64_t token = 0;
  wanted_rows_ = 0;
  while (slice < batch.slices.size()) {
    PlanPass(batch, &slice, &token);
    PlanStages(slice == batch.slices.size());
    parts_.team->RunStages(stage_items_, [this](int member, int64_t stage, int64_t item) {
      const Stage& which = stages_[static_cast<size_t>(stage)];
      (this->*which.run)(
          {.member = member, .layer = which.layer, .index = item, .range = which.shares.Of(item)});
    });
  }
  return {.data = logits_.data(),
          .rows = wanted_rows_,
          .vocab = parts_.config->vocab,
          .stride = logits_stride_};
}

void Transformer::PlanStages(bool last_pass) {
  stages_.clear();
  stage_items_.clear();
  const auto add = [&](StageFunction run, int64_t layer, int64_t items) {
    stages_.push_back({.run = run, .layer = layer});
    stage_items_.push_back(static_cast<int32_t>(items));
  };
  const auto add_product = [&](StageFunction run, int64_t layer, const WorkShares& shares) {
    add(run, layer, shares.items());
    stages_.back().shares = shares;
  };
  const int64_t row_items = CeilDiv(rows_, kRowsPerItem);
  for (int64_t layer = 0; layer < parts_.config->layers; ++layer) {
    add(&Transformer::EnterLayer, layer, row_items);
    add_product(&Transformer::Project, layer, SharesOf(Projections(layer)));
    add(&Transformer::RotateAndStore, layer, row_items);
    add(&Transformer::Attend, layer, static_cast<int64_t>(items_.size()));
    add(&Transformer::FinishAttention, layer, row_items);
    add_product(&Transformer::ProjectAttended, layer, SharesOf(AttendedProjection(layer)));
    add(&Transformer::EnterFeedForward, layer, row_items);
    add_product(&Transformer::Gate, layer, GateShares());
    add_product(&Transformer::Down, layer, SharesOf(DownProjection(layer)));
  }
  add(&Transformer::Leave, parts_.config->layers, row_items);
  if (last_pass && wanted_rows_ > 0) {
    add_product(&Transformer::Head, parts_.config->layers, SharesOf(HeadProjection(0)));
  }
}

std::array<Transformer::Product, 3> Transformer::Projections(int64_t layer) const {
  const LayerWeights& w = parts_.weights->layers[static_cast<size_t>(layer)];
  float* const query = qkv_.data();
  float* const key = query + parts_.config->query_cols();
  float* const value = key + parts_.config->kv_cols();
  return {
      {{&w.query, query, qkv_stride_}, {&w.key, key, qkv_stride_}, {&w.value, value, qkv_stride_}}};
}
std::array<Transformer::Product, 1> Transformer::AttendedProjection(int64_t layer) const {
  const LayerWeights& w = parts_.weights->layers[static_cast<size_t>(layer)];
  return {{{&w.attention_output, branch_.data(), parts_.config->hidden}}};
}
std::array<Transformer::Product, 1> Transformer::DownProjection(int64_t layer) const {
  const LayerWeights& w = parts_.weights->layers[static_cast<size_t>(layer)];
  return {{{&w.down, branch_.data(), parts_.config->hidden}}};
}
std::array<Transformer::Product, 1> Transformer::HeadProjection(int64_t first_row) const {
  float* const logits = logits_.data() + first_row * logits_stride_;
  return {{{&parts_.weights->output, logits, logits_stride_}}};
}

Transformer::RowRange Transformer::RowsOf(const Item& item) const {
  return {item.index * kRowsPerItem, std::min(rows_, (item.index + 1) * kRowsPerItem)};
}

void Transformer::EnterLayer(const Item& item) {
  const RowRange rows = RowsOf(item);
  const LayerWeights* const w = &parts_.weights->layers[static_cast<size_t>(item.layer)];
  if (item.layer == 0) {
    Embed(rows);
  } else {
    AddBranch(rows, w[-1].post_feed_forward_norm);
  }
  NormRows(rows, w->attention_norm);
}

void Transformer::Project(const Item& item) {
  MultiplyItem(item, Projections(item.layer), InputOf(normed_.data(), parts_.config->hidden));
}

void Transformer::FinishAttention(const Item& item) {
  const ModelConfig& config = *parts_.config;
  const RowRange rows = RowsOf(item);
  const int64_t state = config.head_dim + 2;
  for (int64_t row = rows.first; row < rows.last; ++row) {
    const Segment& segment =
        segments_[static_cast<size_t>(row_facts_[static_cast<size_t>(row)].segment)];
    for (int64_t head = 0; segment.splits > 0 && head < config.heads; ++head) {
      parts_.kernels->merge_attention(
          {.head_dim = config.head_dim,
           .splits = segment.splits,
           .partials = partials_.data() + segment.first_partial + head * state,
           .stride = config.heads * state,
           .out = attended_.data() + row * config.query_cols() + head * config.head_dim});
    }
  }
  if (quantizes_) QuantizeRows(rows, attended_.data(), config.query_cols());
}

void Transformer::ProjectAttended(const Item& item) {
  MultiplyItem(item, AttendedProjection(item.layer),
               InputOf(attended_.data(), parts_.config->query_cols()));
}

void Transformer::EnterFeedForward(const Item& item) {
  const LayerWeights& w = parts_.weights->layers[static_cast<size_t>(item.layer)];
  AddBranch(RowsOf(item), w.post_attention_norm);
  NormRows(RowsOf(item), w.feed_forward_norm);
}

void Transformer::Down(const Item& item) {
  MultiplyItem(item, DownProjection(item.layer),
               {.rows = rows_,
                .x = gated_.data(),
                .x_stride = parts_.config->feed_forward,
                .quantized = gated_quantized_.At(0, 0)});
}

void Transformer::Embed(RowRange rows) {
  const int64_t hidden = parts_.config->hidden;
  for (int64_t row = rows.first; row < rows.last; ++row) {
    float* const x = stream_.data() + row * hidden;
    parts_.weights->embedding.Row(row_facts_[static_cast<size_t>(row)].token,
                                  {x, static_cast<size_t>(hidden)});
    if (parts_.config->embedding_scale != 1.0f) {
      parts_.kernels->scale(x, parts_.config->embedding_scale, hidden);
    }
  }
}

void Transformer::NormRows(RowRange rows, const float* weight) {
  const int64_t hidden = parts_.config->hidden;
  const int64_t offset = rows.first * hidden;
  parts_.kernels->rms_norm(stream_.data() + offset, hidden, rows.last - rows.first, hidden, weight,
                           parts_.config->norm_epsilon, normed_.data() + offset, hidden);
  if (quantizes_) QuantizeRows(rows, normed_.data(), hidden);
}

void Transformer::QuantizeRows(RowRange rows, const float* x, int64_t cols) {
  parts_.kernels->quantize_rows(x + rows.first * cols, cols, rows.last - rows.first, cols,
                                quantized_.At(rows.first, 0));
}

void Transformer::AddBranch(RowRange rows, const float* norm) {
  const int64_t hidden = parts_.config->hidden;
  const int64_t offset = rows.first * hidden;
  const int64_t count = rows.last - rows.first;
  const float* branch = branch_.data() + offset;
  if (norm != nullptr) {
    float* const normed = normed_.data() + offset;
    parts_.kernels->rms_norm(branch, hidden, count, hidden, norm, parts_.config->norm_epsilon,
                             normed, hidden);
    branch = normed;
  }
  parts_.kernels->add(stream_.data() + offset, branch, count * hidden);
}

ProductInput Transformer::InputOf(const float* x, int64_t cols) const {
  return {.rows = rows_, .x = x, .x_stride = cols, .quantized = quantized_.At(0, 0)};
}

int64_t Transformer::PanelsOf(std::span<const Product> products) {
  int64_t panels = 0;
  for (const Product& product : products) panels += product.matrix->panels();
  return panels;
}

int64_t Transformer::BytesOf(std::span<const Product> products) {
  int64_t bytes = 0;
  for (const Product& product : products) {
    bytes += product.matrix->panels() * product.matrix->panel_bytes;
  }
  return bytes;
}

WorkShares Transformer::SharesOf(std::span<const Product> products) const {
  const int64_t panels = PanelsOf(products);
  const int64_t most_items = std::clamp<int64_t>(BytesOf(products) / kItemBytes, 1, kMaxItems);
  return StreamShares(panels, parts_.team->size(), CeilDiv(panels, most_items));
}

WorkShares Transformer::GateShares() const {
  return StreamShares(CeilDiv(parts_.config->feed_forward, kGateCols), parts_.team->size(), 1);
}

void Transformer::MultiplyItem(const Item& item, std::span<const Product> products,
                               const ProductInput& input) {
  int64_t first = item.range.first;
  int64_t left = item.range.count;
  for (const Product& product : products) {
    const int64_t panels = product.matrix->panels();
    const int64_t count = std::min(panels - first, left);
    if (count > 0) {
      parts_.kernels->product(*product.matrix, first, first + count, input, product.y,
                              product.stride);
      left -= count;
    }
    first = std::max<int64_t>(0, first - panels);
  }
}

void Transformer::Gate(const Item& item) {
  const int64_t end =
      std::min(parts_.config->feed_forward, (item.range.first + item.range.count) * kGateCols);
  const int64_t piece = kMaxPassRows / rows_ * kGateCols;  // as much as the scratch holds
  for (int64_t col = item.range.first * kGateCols; col < end; col += piece) {
    GateColumns(item, col, std::min(piece, end - col));
  }
}

void Transformer::GateColumns(const Item& item, int64_t col, int64_t width) {
  const LayerWeights& weights = parts_.weights->layers[static_cast<size_t>(item.layer)];
  const int64_t cols = parts_.config->feed_forward;
  const auto multiply = parts_.config->activation == Activation::kSilu
                            ? parts_.kernels->silu_multiply
                            : parts_.kernels->gelu_multiply;
  const LaneScratch& scratch = *scratch_[static_cast<size_t>(item.member)];
  float* const gate = scratch.gate.data();
  float* const up = scratch.up.data();
  const ProductInput input = InputOf(normed_.data(), parts_.config->hidden);
  const int64_t first = col / kPanelRows;
  const int64_t last = CeilDiv(col + width, kPanelRows);
  parts_.kernels->product(PartOf(weights.gate, first, last), 0, last - first, input, gate, width);
  parts_.kernels->product(PartOf(weights.up, first, last), 0, last - first, input, up, width);
  for (int64_t row = 0; row < rows_; ++row) {
    multiply(gate + row * width, up + row * width, gated_.data() + row * cols + col, width);
  }
  if (quantizes_) {
    parts_.kernels->quantize_rows(gated_.data() + col, cols, rows_, width,
                                  gated_quantized_.At(0, col));
  }
}

KvPages Transformer::PagesOf(const Segment& segment, int64_t layer, int64_t kv_head) const {
  const int32_t group = group_of_layer_[static_cast<size_t>(layer)];
  const int32_t pool = parts_.pools->Find(group, segment.slice->kv_format);
  const KvLayout& layout = parts_.pools->layout(pool);
  if (segment.slice->contiguous != nullptr) {
    return segment.slice->contiguous->PagesOf(layer, kv_head, layout);
  }
  return {.format = layout.format(),
          .arena = parts_.pools->arena(pool),
          .block_table = segment.slice->block_tables[static_cast<size_t>(group)].data(),
          .block_bytes = layout.block_bytes(),
          .pages_per_block = layout.pages_per_block(),
          .offset = layout.HeadOffset(index_in_group_[static_cast<size_t>(layer)], kv_head),
          .page_stride = layout.page_bytes()};
}

void Transformer::RotateAndStore(const Item& item) {
  const RowRange rows = RowsOf(item);
  for (int64_t row = rows.first; row < rows.last; ++row) {
    for (int64_t kv_head = 0; kv_head < parts_.config->kv_heads; ++kv_head) {
      RotateAndStoreHead(item.layer, row, kv_head);
    }
  }
}

void Transformer::RotateAndStoreHead(int64_t layer, int64_t row, int64_t kv_head) {
  const ModelConfig& config = *parts_.config;
  const KernelTable& kernels = *parts_.kernels;
  const LayerWeights& w = parts_.weights->layers[static_cast<size_t>(layer)];
  const RopeTable& rope =
      config.windowed[static_cast<size_t>(layer)] ? *parts_.windowed_rope : *parts_.rope;
  const int64_t dim = config.head_dim;
  const int64_t heads = config.query_heads_per_kv_head();
  const RowFacts& facts = row_facts_[static_cast<size_t>(row)];
  float* const q = qkv_.data() + row * qkv_stride_ + kv_head * heads * dim;
  float* const k = qkv_.data() + row * qkv_stride_ + config.query_cols() + kv_head * dim;
  float* const v = k + config.kv_cols();
  if (w.query_bias != nullptr) kernels.add(q, w.query_bias + kv_head * heads * dim, heads * dim);
  if (w.key_bias != nullptr) kernels.add(k, w.key_bias + kv_head * dim, dim);
  if (w.value_bias != nullptr) kernels.add(v, w.value_bias + kv_head * dim, dim);
  if (w.query_norm != nullptr) {
    kernels.rms_norm(q, dim, heads, dim, w.query_norm, config.norm_epsilon, q, dim);
  }
  if (w.key_norm != nullptr)
    kernels.rms_norm(k, dim, 1, dim, w.key_norm, config.norm_epsilon, k, dim);
  const float* const cosines = rope.Cosines(facts.position);
  const float* const sines = rope.Sines(facts.position);
  kernels.rope(q, heads, dim, config.rope_pairs, cosines, sines, config.rope_style);
  kernels.rope(k, 1, dim, config.rope_pairs, cosines, sines, config.rope_style);
  const Segment& segment = segments_[static_cast<size_t>(facts.segment)];
  kernels.store_kv({.kv = PagesOf(segment, layer, kv_head),
                    .head_dim = dim,
                    .position = facts.position,
                    .k = k,
                    .v = v});
}

void Transformer::Attend(const Item& stage_item) {
  const ModelConfig& config = *parts_.config;
  // From the last item on: the longest contexts come first, so that the members finish together.
  const AttentionItem& item = items_[items_.size() - 1 - static_cast<size_t>(stage_item.index)];
  const Segment& segment = segments_[static_cast<size_t>(item.segment)];
  const int64_t row = segment.row + item.begin;
  const int64_t head_offset = item.first_head * config.head_dim;
  const int64_t kv_head = item.first_head / config.query_heads_per_kv_head();
  const auto [window, sinks] = cache_manager::SpanInLayers(
      config.windowed[static_cast<size_t>(stage_item.layer)] ? config.window : 0,
      segment.slice->attention);
  const int64_t state = config.head_dim + 2;
  const int64_t partial =
      segment.first_partial + (item.split * config.heads + item.first_head) * state;
  parts_.kernels->attention(
      {.kv = PagesOf(segment, stage_item.layer, kv_head),
       .head_dim = config.head_dim,
       .heads = item.heads,
       .queries = item.count,
       .first_position = segment.first_position() + item.begin,
       .window = window,
       .sinks = sinks,
       .scale = config.attention_scale,
       .q = qkv_.data() + row * qkv_stride_ + head_offset,
       .q_stride = qkv_stride_,
       .out = attended_.data() + row * config.query_cols() + head_offset,
       .out_stride = config.query_cols(),
       .scratch = scratch_[static_cast<size_t>(stage_item.member)]->attention.data(),
       .split = item.split,
       .partials = item.split < 0 ? nullptr : partials_.data() + partial});
}

void Transformer::Leave(const Item& item) {
  const RowRange rows = RowsOf(item);
  const int64_t hidden = parts_.config->hidden;
  AddBranch(rows, parts_.weights->layers.back().post_feed_forward_norm);
  for (int64_t row = rows.first; row < rows.last; ++row) {
    const int64_t wanted = row_facts_[static_cast<size_t>(row)].logit_row;
    if (wanted < 0) continue;
    float* const x = wanted_.data() + wanted * hidden;
    parts_.kernels->rms_norm(stream_.data() + row * hidden, hidden, 1, hidden,
                             parts_.weights->output_norm, parts_.config->norm_epsilon, x, hidden);
    if (quantizes_) {
      parts_.kernels->quantize_rows(x, hidden, 1, hidden, wanted_quantized_.At(wanted, 0));
    }
  }
}

void Transformer::Head(const Item& item) {
  const int64_t hidden = parts_.config->hidden;
  for (int64_t row = 0; row < wanted_rows_; row += kMaxPassRows) {
    MultiplyItem(item, HeadProjection(row),
                 {.rows = std::min(kMaxPassRows, wanted_rows_ - row),
                  .x = wanted_.data() + row * hidden,
                  .x_stride = hidden,
                  .quantized = wanted_quantized_.At(row, 0)});
  }
}

}  // namespace kvist::worker
