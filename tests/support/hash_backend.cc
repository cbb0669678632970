#include "tests/support/hash_backend.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <map>
#include <utility>

#include "common/base/check.h"
#include "common/base/int_math.h"

namespace kvist::worker {
namespace {

using cache_manager::AttentionSpan;

uint64_t Chain(uint64_t hash, uint64_t value) {
  return Mix64(hash * 0x9E3779B97F4A7C15ULL + value + 1);
}

// The value that a token stores: its own id and place, and everything it sees.
uint64_t SlotValue(int32_t token, int64_t position, KvFormat format, uint64_t seen) {
  uint64_t hash = Chain(static_cast<uint64_t>(token), static_cast<uint64_t>(position));
  hash = Chain(hash, static_cast<uint64_t>(format));
  return Chain(hash, seen);
}

int64_t FirstSeen(const AttentionSpan& span, int64_t position) {
  return span.window_tokens == 0 ? 0 : std::max<int64_t>(0, position - span.window_tokens + 1);
}

// read(p) gives the slot of position p.
template <typename Read>
uint64_t SeenHash(const AttentionSpan& span, int64_t position, Read read) {
  uint64_t seen = 0;
  for (int64_t p = 0; p < position; ++p) {
    if (p < span.sink_tokens || p >= FirstSeen(span, position)) seen = Chain(seen, read(p));
  }
  return seen;
}

// Of the token at position `next`, from the hash of all before it.
void FillLogits(uint64_t hash, int64_t next, const HashBackendOptions& options, float* out) {
  for (int64_t i = 0; i < options.vocab; ++i) {
    const uint64_t bits = Chain(hash, static_cast<uint64_t>(i)) >> 40;
    out[i] = (static_cast<float>(bits) * 0x1p-24f - 0.5f) * options.logit_span;
  }
  if (options.repeat_tokens == 0 || hash % 8 == 0) return;
  const uint64_t place = static_cast<uint64_t>(next % options.repeat_tokens);
  out[Mix64(place + 1) % static_cast<uint64_t>(options.vocab)] += options.logit_span;
}

}  // namespace

HashSequence::HashSequence(const HashBackendOptions& options, KvFormat format,
                           const AttentionSpan& attention)
    : options_(options), format_(format), attention_(attention), slots_(options.windows.size()) {}

void HashSequence::Append(int32_t token) {
  for (size_t g = 0; g < slots_.size(); ++g) {
    std::vector<uint64_t>& slots = slots_[g];
    const int64_t position = static_cast<int64_t>(slots.size());
    const AttentionSpan span = cache_manager::SpanInLayers(options_.windows[g], attention_);
    const uint64_t seen =
        SeenHash(span, position, [&](int64_t p) { return slots[static_cast<size_t>(p)]; });
    slots.push_back(SlotValue(token, position, format_, seen));
  }
}

std::vector<float> HashSequence::Logits() const {
  uint64_t hash = 0;
  for (const std::vector<uint64_t>& slots : slots_) hash = Chain(hash, slots.back());
  std::vector<float> logits(static_cast<size_t>(options_.vocab));
  FillLogits(hash, static_cast<int64_t>(slots_[0].size()), options_, logits.data());
  return logits;
}

HashBackend::HashBackend(const HashBackendOptions& options,
                         std::shared_ptr<HashBackendControl> control)
    : options_(options), control_(std::move(control)) {
  facts_.name = "hash";
  facts_.architecture = "hash";
  facts_.fingerprint = options.fingerprint;
  facts_.vocab = options.vocab;
  facts_.context_tokens = options.context_tokens;
  facts_.sampling_defaults = options.sampling_defaults;
  for (size_t g = 0; g < options.windows.size(); ++g) {
    facts_.groups.push_back({.layers = {static_cast<int32_t>(g)},
                             .kv_heads = 1,
                             .head_dim = 8,
                             .window = options.windows[g]});
  }
  for (const KvFormat format : options.formats) {
    for (size_t g = 0; g < options.windows.size(); ++g) {
      pools_.push_back({.group = static_cast<int32_t>(g),
                        .format = format,
                        .num_blocks = options.num_blocks,
                        .block_bytes = options.block_tokens * int64_t{8},
                        .block_tokens = options.block_tokens});
      arenas_.emplace_back(static_cast<size_t>(options.num_blocks * options.block_tokens),
                           0xDEADBEEFCAFEF00DULL);
      kv_bytes_ += pools_.back().num_blocks * pools_.back().block_bytes;
    }
  }
  logits_.resize(static_cast<size_t>(options.max_logit_rows * options.vocab));
}

size_t HashBackend::FirstPool(KvFormat format) const {
  size_t pool = 0;
  while (pool < pools_.size() && pools_[pool].format != format) ++pool;
  return pool;
}

uint64_t* HashBackend::Slot(size_t pool, std::span<const int32_t> table, int64_t position) {
  const int32_t block = table[static_cast<size_t>(position / options_.block_tokens)];
  return &arenas_[pool][static_cast<size_t>(block * int64_t{options_.block_tokens} +
                                            position % options_.block_tokens)];
}

absl::Status HashBackend::CheckSlice(const SequenceSlice& slice) const {
  const int64_t end = slice.first_position + static_cast<int64_t>(slice.tokens.size());
  if (slice.tokens.empty() || end > options_.context_tokens) {
    return absl::InternalError("hash backend: empty slice or beyond the context");
  }
  for (const int32_t token : slice.tokens) {
    if (token < 0 || token >= options_.vocab) return absl::InternalError("hash backend: token id");
  }
  if (FirstPool(slice.kv_format) == pools_.size() ||
      slice.block_tables.size() != options_.windows.size()) {
    return absl::InternalError("hash backend: format or groups");
  }
  for (size_t g = 0; g < options_.windows.size(); ++g) {
    const std::span<const int32_t> table = slice.block_tables[g];
    if (static_cast<int64_t>(table.size()) < CeilDiv<int64_t>(end, options_.block_tokens)) {
      return absl::InternalError("hash backend: a table is too short");
    }
    const AttentionSpan span = cache_manager::SpanInLayers(options_.windows[g], slice.attention);
    const auto block_of = [&](int64_t position) {
      return static_cast<size_t>(position / options_.block_tokens);
    };
    const size_t first = block_of(FirstSeen(span, slice.first_position));
    for (size_t b = 0; b < table.size(); ++b) {
      if (b < first && (span.sink_tokens == 0 || b > block_of(span.sink_tokens - 1))) continue;
      if (table[b] < 0 || table[b] >= options_.num_blocks) {
        return absl::InternalError("hash backend: a block in sight is not there");
      }
    }
  }
  return absl::OkStatus();
}

absl::Status HashBackend::Check(const Batch& batch) const {
  int64_t rows = 0;
  std::map<std::pair<size_t, int32_t>, size_t> writers;  // (pool, block) -> slice
  for (size_t s = 0; s < batch.slices.size(); ++s) {
    const SequenceSlice& slice = batch.slices[s];
    if (absl::Status status = CheckSlice(slice); !status.ok()) return status;
    const int64_t n = static_cast<int64_t>(slice.tokens.size());
    rows += n - slice.logits_from;
    for (size_t g = 0; g < options_.windows.size(); ++g) {
      const size_t pool = FirstPool(slice.kv_format) + g;
      for (int64_t b = slice.first_position / options_.block_tokens;
           b <= (slice.first_position + n - 1) / options_.block_tokens; ++b) {
        const int32_t block = slice.block_tables[g][static_cast<size_t>(b)];
        if (!writers.try_emplace({pool, block}, s).second) {
          return absl::InternalError("hash backend: a block has two writers");
        }
      }
    }
  }
  if (batch.TotalTokens() > options_.max_batch_tokens || rows > options_.max_logit_rows) {
    return absl::InternalError("hash backend: batch too large");
  }
  return absl::OkStatus();
}

absl::StatusOr<Logits> HashBackend::Run(const Batch& batch) {
  if (control_->on_run) control_->on_run(batch);
  if (control_->fail_next_run.exchange(false)) return absl::InternalError("asked to fail");
  if (absl::Status status = Check(batch); !status.ok()) return status;
  control_->tokens += static_cast<uint64_t>(batch.TotalTokens());
  int64_t row = 0;
  for (const SequenceSlice& slice : batch.slices) {
    const size_t first_pool = FirstPool(slice.kv_format);
    for (size_t i = 0; i < slice.tokens.size(); ++i) {
      const int64_t position = slice.first_position + static_cast<int64_t>(i);
      uint64_t hash = 0;
      for (size_t g = 0; g < options_.windows.size(); ++g) {
        const std::span<const int32_t> table = slice.block_tables[g];
        const uint64_t seen =
            SeenHash(cache_manager::SpanInLayers(options_.windows[g], slice.attention), position,
                     [&](int64_t p) { return *Slot(first_pool + g, table, p); });
        uint64_t* slot = Slot(first_pool + g, table, position);
        *slot = SlotValue(slice.tokens[i], position, slice.kv_format, seen);
        hash = Chain(hash, *slot);
      }
      if (static_cast<int64_t>(i) < slice.logits_from) continue;
      FillLogits(hash, position + 1, options_, logits_.data() + row++ * options_.vocab);
    }
  }
  if (control_->nan_next_run.exchange(false)) {
    std::fill(logits_.begin(), logits_.end(), std::numeric_limits<float>::quiet_NaN());
  }
  return Logits{logits_.data(), row, options_.vocab, options_.vocab};
}

void HashBackend::CopyBlock(int32_t pool, int32_t from, int32_t to) {
  std::vector<uint64_t>& arena = arenas_[static_cast<size_t>(pool)];
  KVIST_CHECK(from >= 0 && to >= 0 && from < options_.num_blocks && to < options_.num_blocks);
  std::copy_n(arena.begin() + from * options_.block_tokens, options_.block_tokens,
              arena.begin() + to * options_.block_tokens);
  ++control_->copies;
}

void HashBackend::ReadBlock(int32_t pool, int32_t block, std::span<std::byte> out) const {
  std::memcpy(
      out.data(),
      &arenas_[static_cast<size_t>(pool)][static_cast<size_t>(block * options_.block_tokens)],
      out.size());
}

void HashBackend::WriteBlock(int32_t pool, int32_t block, std::span<const std::byte> bytes) {
  std::memcpy(
      &arenas_[static_cast<size_t>(pool)][static_cast<size_t>(block * options_.block_tokens)],
      bytes.data(), bytes.size());
}

void HashBackend::ReadTokens(int32_t pool, int32_t block, int32_t tokens,
                             std::span<std::byte> out) const {
  ReadBlock(pool, block, out);
  const auto rest = out.subspan(static_cast<size_t>(tokens) * sizeof(uint64_t));
  std::fill(rest.begin(), rest.end(), std::byte{0});
}

}  // namespace kvist::worker
