#include "worker/backend/batch_check.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/base/int_math.h"
#include "common/base/status.h"
#include "worker/kv/concat_cache.h"

namespace kvist::worker {
namespace {

absl::Status SliceError(size_t slice, std::string_view problem) {
  return absl::InternalError(absl::StrCat("batch slice ", slice, ": ", ToAbsl(problem)));
}

const PoolSpec* FindPool(const std::vector<PoolSpec>& pools, size_t group, KvFormat format) {
  for (const PoolSpec& pool : pools) {
    if (static_cast<size_t>(pool.group) == group && pool.format == format) return &pool;
  }
  return nullptr;
}

absl::Status CheckTable(size_t index, const SequenceSlice& slice, const LayerGroup& group,
                        const PoolSpec& pool, std::span<const int32_t> table) {
  const int64_t end = slice.first_position + static_cast<int64_t>(slice.tokens.size());
  const int64_t needed = CeilDiv<int64_t>(end, pool.block_tokens);
  if (static_cast<int64_t>(table.size()) < needed) {
    return SliceError(index, absl::StrCat("a block table has ", table.size(), " blocks, ", needed,
                                          " are needed"));
  }
  const auto [window, sinks] = cache_manager::SpanInLayers(group.window, slice.attention);
  const int64_t first_seen =
      window == 0 ? 0 : std::max<int64_t>(0, slice.first_position - window + 1);
  const int64_t sink_blocks = CeilDiv<int64_t>(sinks, pool.block_tokens);
  for (int64_t block = 0; block < needed; ++block) {
    if (block >= sink_blocks && block < first_seen / pool.block_tokens) continue;
    const int32_t physical = table[static_cast<size_t>(block)];
    if (physical < 0 || physical >= pool.num_blocks) {
      return SliceError(index, absl::StrCat("block ", block, " of a table is ", physical,
                                            ", the pool has ", pool.num_blocks));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckWrites(size_t index, const SequenceSlice& slice, int64_t end,
                         const PoolSpec& pool, size_t pool_index, std::span<const int32_t> table,
                         BlockWriters& writers) {
  for (int64_t block = slice.first_position / pool.block_tokens;
       block < CeilDiv<int64_t>(end, pool.block_tokens); ++block) {
    const int32_t physical = table[static_cast<size_t>(block)];
    const std::optional<size_t> other = writers.Write(pool_index, physical, index);
    if (!other.has_value()) continue;
    if (*other == index) {
      return SliceError(index,
                        absl::StrCat("writes block ", physical, " of pool ", pool_index, " twice"));
    }
    return absl::InternalError(absl::StrCat("batch slices ", *other, " and ", index,
                                            ": both write block ", physical, " of pool ",
                                            pool_index));
  }
  return absl::OkStatus();
}

absl::Status FormatError(size_t index, KvFormat format) {
  return SliceError(index, absl::StrCat("KV format ", static_cast<int>(format), " is not served"));
}

// Its pages have the layout of the pools' format.
absl::Status CheckContiguous(size_t index, const SequenceSlice& slice,
                             const std::vector<LayerGroup>& groups,
                             const std::vector<PoolSpec>& pools) {
  size_t layers = 0;
  for (size_t group = 0; group < groups.size(); ++group) {
    layers += groups[group].layers.size();
    if (FindPool(pools, group, slice.kv_format) == nullptr) {
      return FormatError(index, slice.kv_format);
    }
  }
  const ContiguousKv& kv = *slice.contiguous;
  if (kv.layers.size() != layers) {
    return SliceError(
        index, absl::StrCat("contiguous KV of ", kv.layers.size(), " layers, not of ", layers));
  }
  const int64_t end = slice.first_position + static_cast<int64_t>(slice.tokens.size());
  if (kv.pages * kPageTokens < end) {
    return SliceError(index, absl::StrCat("contiguous KV of ", kv.pages, " pages does not hold ",
                                          end, " tokens"));
  }
  return absl::OkStatus();
}

absl::Status CheckSlice(size_t index, const SequenceSlice& slice, const BatchLimits& limits,
                        const std::vector<LayerGroup>& groups, const std::vector<PoolSpec>& pools,
                        BlockWriters& writers) {
  const int64_t count = static_cast<int64_t>(slice.tokens.size());
  if (count < 1) return SliceError(index, "no tokens");
  for (const int32_t token : slice.tokens) {
    if (token < 0 || token >= limits.vocab) {
      return SliceError(
          index, absl::StrCat("token ", token, " is not in the vocabulary of ", limits.vocab));
    }
  }
  if (slice.first_position < 0 || slice.first_position > limits.context_tokens - count) {
    return SliceError(index, absl::StrCat(count, " tokens at position ", slice.first_position,
                                          " exceed the context of ", limits.context_tokens));
  }
  if (slice.logits_from < 0 || slice.logits_from > count) {
    return SliceError(index,
                      absl::StrCat("logits_from is ", slice.logits_from, " of ", count, " tokens"));
  }
  if (auto span = cache_manager::ValidateAttention(slice.attention, limits.context_tokens);
      !span.ok()) {
    return SliceError(index, std::string(span.message()));
  }
  if (slice.contiguous != nullptr) return CheckContiguous(index, slice, groups, pools);
  if (slice.block_tables.size() != groups.size()) {
    return SliceError(index, absl::StrCat(slice.block_tables.size(), " block tables for ",
                                          groups.size(), " layer groups"));
  }
  for (size_t group = 0; group < groups.size(); ++group) {
    const PoolSpec* pool = FindPool(pools, group, slice.kv_format);
    if (pool == nullptr) return FormatError(index, slice.kv_format);
    const std::span<const int32_t> table = slice.block_tables[group];
    KVIST_RETURN_IF_ERROR(CheckTable(index, slice, groups[group], *pool, table));
    KVIST_RETURN_IF_ERROR(CheckWrites(index, slice, slice.first_position + count, *pool,
                                      static_cast<size_t>(pool - pools.data()), table, writers));
  }
  return absl::OkStatus();
}

}  // namespace

BlockWriters::BlockWriters(const std::vector<PoolSpec>& pools) {
  for (const PoolSpec& pool : pools) marks_.emplace_back(static_cast<size_t>(pool.num_blocks));
}

void BlockWriters::Begin(size_t slices) {
  first_mark_ = next_mark_;
  next_mark_ += slices;
}

std::optional<size_t> BlockWriters::Write(size_t pool, int32_t block, size_t slice) {
  uint64_t& mark = marks_[pool][static_cast<size_t>(block)];
  const uint64_t before = mark;
  mark = first_mark_ + slice;
  if (before < first_mark_) return std::nullopt;
  return static_cast<size_t>(before - first_mark_);
}

absl::Status CheckBatch(const Batch& batch, const BatchLimits& limits,
                        const std::vector<LayerGroup>& groups, const std::vector<PoolSpec>& pools,
                        BlockWriters& writers) {
  writers.Begin(batch.slices.size());
  int64_t tokens = 0;
  int64_t logit_rows = 0;
  for (size_t index = 0; index < batch.slices.size(); ++index) {
    const SequenceSlice& slice = batch.slices[index];
    KVIST_RETURN_IF_ERROR(CheckSlice(index, slice, limits, groups, pools, writers));
    tokens += static_cast<int64_t>(slice.tokens.size());
    logit_rows += static_cast<int64_t>(slice.tokens.size()) - slice.logits_from;
  }
  if (tokens > limits.max_batch_tokens) {
    return absl::InternalError(
        absl::StrCat("a batch of ", tokens, " tokens, the most is ", limits.max_batch_tokens));
  }
  if (logit_rows > limits.max_logit_rows) {
    return absl::InternalError(absl::StrCat(
        "a batch with ", logit_rows, " rows of logits, the most is ", limits.max_logit_rows));
  }
  return absl::OkStatus();
}

}  // namespace kvist::worker
