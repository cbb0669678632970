// The program of a pass. Between two barriers each member writes only its own part of a shared
// buffer, and reads only what was complete at the last barrier. Rows (embedding, norms, quantising)
// are owned by members; matrix products are shared out by panels of weights. In a short pass every
// member computes all rows for itself, into private buffers: that is cheaper than a barrier. The
// bits do not depend on any of this: each value is one chain of operations.
#include "worker/backend/transformer.h"

#include <algorithm>

#include "common/base/int_math.h"
#include "worker/kv/concat_cache.h"

namespace kvist::worker {
namespace {

// The part [first, last) of `count` that falls to `member` of `size`.
struct Share {
  int64_t first;
  int64_t last;
};
Share ShareOf(int64_t count, int64_t member, int64_t size) {
  return {count * member / size, count * (member + 1) / size};
}

// Panels [first, last) as a matrix of their own.
PackedMatrix PanelsOf(const PackedMatrix& matrix, int64_t first, int64_t last) {
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
    parts_.team->Run([this](int member) { RunPass(member); });
  }
  if (wanted_rows_ > 0) {
    parts_.team->Run([this](int member) { RunHead(member); });
  }
  return {.data = logits_.data(),
          .rows = wanted_rows_,
          .vocab = parts_.config->vocab,
          .stride = logits_stride_};
}

void Transformer::RunPass(int member) {
  Lane lane{.member = member, .scratch = scratch_[static_cast<size_t>(member)].get()};
  if (duplicated_) {
    lane.rows = private_rows_[static_cast<size_t>(member)].get();
    lane.last_row = rows_;
  } else {
    lane.rows = &shared_rows_;
    const Share share = ShareOf(rows_, member, parts_.team->size());
    lane.first_row = share.first;
    lane.last_row = share.last;
  }
  Embed(lane);
  for (int64_t layer = 0; layer < parts_.config->layers; ++layer) RunLayer(layer, lane);
  KeepWantedRows(lane);
}

void Transformer::RunLayer(int64_t layer, const Lane& lane) {
  const LayerWeights& w = parts_.weights->layers[static_cast<size_t>(layer)];
  const ModelConfig& config = *parts_.config;

  NormRows(lane, w.attention_norm);
  ShareRows();
  float* const query = qkv_.data();
  float* const key = query + config.query_cols();
  float* const value = key + config.kv_cols();
  MultiplyShare(
      lane.member,
      {{&w.query, query, qkv_stride_}, {&w.key, key, qkv_stride_}, {&w.value, value, qkv_stride_}},
      InputOf(lane, lane.rows->normed.data(), config.hidden));
  parts_.team->Barrier();
  RotateAndStore(layer, lane);
  parts_.team->Barrier();
  Attend(layer, lane);
  parts_.team->Barrier();
  QuantizeRows(lane, attended_.data(), config.query_cols());
  ShareRows();
  MultiplyShare(lane.member, {{&w.attention_output, branch_.data(), config.hidden}},
                InputOf(lane, attended_.data(), config.query_cols()));
  parts_.team->Barrier();
  AddBranch(lane, w.post_attention_norm);

  NormRows(lane, w.feed_forward_norm);
  ShareRows();
  GateShare(lane, w, InputOf(lane, lane.rows->normed.data(), config.hidden));
  parts_.team->Barrier();
  MultiplyShare(lane.member, {{&w.down, branch_.data(), config.hidden}},
                {.rows = rows_,
                 .x = gated_.data(),
                 .x_stride = config.feed_forward,
                 .quantized = gated_quantized_.At(0, 0)});
  parts_.team->Barrier();
  AddBranch(lane, w.post_feed_forward_norm);
}

void Transformer::Embed(const Lane& lane) {
  const int64_t hidden = parts_.config->hidden;
  for (int64_t row = lane.first_row; row < lane.last_row; ++row) {
    float* const x = lane.rows->stream.data() + row * hidden;
    parts_.weights->embedding.Row(row_facts_[static_cast<size_t>(row)].token,
                                  {x, static_cast<size_t>(hidden)});
    if (parts_.config->embedding_scale != 1.0f) {
      parts_.kernels->scale(x, parts_.config->embedding_scale, hidden);
    }
  }
}

void Transformer::ShareRows() {
  if (!duplicated_) parts_.team->Barrier();
}

void Transformer::NormRows(const Lane& lane, const float* weight) {
  const int64_t hidden = parts_.config->hidden;
  const int64_t offset = lane.first_row * hidden;
  parts_.kernels->rms_norm(lane.rows->stream.data() + offset, hidden,
                           lane.last_row - lane.first_row, hidden, weight,
                           parts_.config->norm_epsilon, lane.rows->normed.data() + offset, hidden);
  QuantizeRows(lane, lane.rows->normed.data(), hidden);
}

void Transformer::QuantizeRows(const Lane& lane, const float* x, int64_t cols) {
  if (!quantizes_) return;
  parts_.kernels->quantize_rows(x + lane.first_row * cols, cols, lane.last_row - lane.first_row,
                                cols, lane.rows->quantized.At(lane.first_row, 0));
}

void Transformer::AddBranch(const Lane& lane, const float* norm) {
  const int64_t hidden = parts_.config->hidden;
  const int64_t offset = lane.first_row * hidden;
  const int64_t rows = lane.last_row - lane.first_row;
  const float* branch = branch_.data() + offset;
  if (norm != nullptr) {
    float* const normed = lane.rows->normed.data() + offset;
    parts_.kernels->rms_norm(branch, hidden, rows, hidden, norm, parts_.config->norm_epsilon,
                             normed, hidden);
    branch = normed;
  }
  parts_.kernels->add(lane.rows->stream.data() + offset, branch, rows * hidden);
}

ProductInput Transformer::InputOf(const Lane& lane, const float* x, int64_t cols) const {
  return {.rows = rows_, .x = x, .x_stride = cols, .quantized = lane.rows->quantized.At(0, 0)};
}

void Transformer::MultiplyShare(int member, std::initializer_list<Product> products,
                                const ProductInput& input) {
  int64_t total_bytes = 0;
  for (const Product& product : products)
    total_bytes += product.matrix->panels() * product.matrix->panel_bytes;
  const Share share = ShareOf(total_bytes, member, parts_.team->size());
  int64_t begin_bytes = 0;
  for (const Product& product : products) {
    const PackedMatrix& matrix = *product.matrix;
    // A panel belongs to the member in whose share of the bytes it begins.
    const auto panel_at = [&](int64_t bytes) {
      const int64_t inside = std::max<int64_t>(0, bytes - begin_bytes);
      return std::min(matrix.panels(), CeilDiv(inside, matrix.panel_bytes));
    };
    const int64_t first = panel_at(share.first);
    const int64_t last = panel_at(share.last);
    if (first < last)
      parts_.kernels->product(matrix, first, last, input, product.y, product.stride);
    begin_bytes += matrix.panels() * matrix.panel_bytes;
  }
}

void Transformer::GateShare(const Lane& lane, const LayerWeights& weights,
                            const ProductInput& input) {
  const int64_t cols = parts_.config->feed_forward;
  const auto multiply = parts_.config->activation == Activation::kSilu
                            ? parts_.kernels->silu_multiply
                            : parts_.kernels->gelu_multiply;
  float* const gate = lane.scratch->gate.data();
  float* const up = lane.scratch->up.data();
  // As many columns at a time as the scratch holds: many rows' values are still in cache when they
  // are quantised.
  const int64_t step = std::max<int64_t>(1, kMaxPassRows / rows_) * kGateCols;
  const Share share = ShareOf(CeilDiv(cols, kGateCols), lane.member, parts_.team->size());
  const int64_t end = std::min(cols, share.last * kGateCols);
  for (int64_t col = share.first * kGateCols; col < end; col += step) {
    const int64_t width = std::min(step, end - col);
    const int64_t first = col / kPanelRows;
    const int64_t last = CeilDiv(col + width, kPanelRows);
    parts_.kernels->product(PanelsOf(weights.gate, first, last), 0, last - first, input, gate,
                            width);
    parts_.kernels->product(PanelsOf(weights.up, first, last), 0, last - first, input, up, width);
    for (int64_t row = 0; row < rows_; ++row) {
      multiply(gate + row * width, up + row * width, gated_.data() + row * cols + col, width);
    }
    if (quantizes_) {
      parts_.kernels->quantize_rows(gated_.data() + col, cols, rows_, width,
                                    gated_quantized_.At(0, col));
    }
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

void Transformer::RotateAndStore(int64_t layer, const Lane& lane) {
  const ModelConfig& config = *parts_.config;
  const KernelTable& kernels = *parts_.kernels;
  const LayerWeights& w = parts_.weights->layers[static_cast<size_t>(layer)];
  const RopeTable& rope =
      config.windowed[static_cast<size_t>(layer)] ? *parts_.windowed_rope : *parts_.rope;
  const int64_t dim = config.head_dim;
  const int64_t heads = config.query_heads_per_kv_head();
  if (lane.member == 0) next_item_.store(0, std::memory_order_relaxed);

  const Share share = ShareOf(rows_ * config.kv_heads, lane.member, parts_.team->size());
  for (int64_t unit = share.first; unit < share.last; ++unit) {
    const int64_t row = unit / config.kv_heads;
    const int64_t kv_head = unit % config.kv_heads;
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
}

void Transformer::Attend(int64_t layer, const Lane& lane) {
  const ModelConfig& config = *parts_.config;
  const int64_t count = static_cast<int64_t>(items_.size());
  // From the last item on: the longest contexts come first, so that the members finish together.
  for (int64_t taken = next_item_.fetch_add(1, std::memory_order_relaxed); taken < count;
       taken = next_item_.fetch_add(1, std::memory_order_relaxed)) {
    const AttentionItem& item = items_[static_cast<size_t>(count - 1 - taken)];
    const Segment& segment = segments_[static_cast<size_t>(item.segment)];
    const int64_t row = segment.row + item.begin;
    const int64_t head_offset = item.first_head * config.head_dim;
    parts_.kernels->attention(
        {.kv = PagesOf(segment, layer, item.first_head / config.query_heads_per_kv_head()),
         .head_dim = config.head_dim,
         .heads = item.heads,
         .queries = item.count,
         .first_position = segment.first_position() + item.begin,
         .window = config.windowed[static_cast<size_t>(layer)] ? config.window : 0,
         .scale = config.attention_scale,
         .q = qkv_.data() + row * qkv_stride_ + head_offset,
         .q_stride = qkv_stride_,
         .out = attended_.data() + row * config.query_cols() + head_offset,
         .out_stride = config.query_cols(),
         .scratch = lane.scratch->attention.data()});
  }
}

void Transformer::KeepWantedRows(const Lane& lane) {
  if (duplicated_ && lane.member != 0) return;
  const int64_t hidden = parts_.config->hidden;
  for (int64_t row = lane.first_row; row < lane.last_row; ++row) {
    const int64_t wanted = row_facts_[static_cast<size_t>(row)].logit_row;
    if (wanted < 0) continue;
    parts_.kernels->rms_norm(lane.rows->stream.data() + row * hidden, hidden, 1, hidden,
                             parts_.weights->output_norm, parts_.config->norm_epsilon,
                             wanted_.data() + wanted * hidden, hidden);
  }
}

void Transformer::RunHead(int member) {
  const int64_t hidden = parts_.config->hidden;
  if (quantizes_) {
    const Share share = ShareOf(wanted_rows_, member, parts_.team->size());
    parts_.kernels->quantize_rows(wanted_.data() + share.first * hidden, hidden,
                                  share.last - share.first, hidden,
                                  wanted_quantized_.At(share.first, 0));
    parts_.team->Barrier();
  }
  for (int64_t row = 0; row < wanted_rows_; row += kMaxPassRows) {
    MultiplyShare(
        member, {{&parts_.weights->output, logits_.data() + row * logits_stride_, logits_stride_}},
        {.rows = std::min(kMaxPassRows, wanted_rows_ - row),
         .x = wanted_.data() + row * hidden,
         .x_stride = hidden,
         .quantized = wanted_quantized_.At(row, 0)});
  }
}

}  // namespace kvist::worker
