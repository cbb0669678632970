#include "services/cli/sequence_runner.h"

#include <algorithm>
#include <numeric>

#include "common/base/int_math.h"
#include "common/base/status.h"

namespace kvist::services {

void SizeFor(const SequenceSizes& sizes, worker::CpuBackendOptions* options) {
  options->context_tokens = sizes.tokens_each;
  options->blocks_per_pool = static_cast<int32_t>(
      sizes.sequences * CeilDiv<int64_t>(sizes.tokens_each, options->block_tokens));
  options->max_logit_rows = std::max<int64_t>(options->max_logit_rows, sizes.sequences);
  options->max_batch_tokens = std::max<int64_t>(options->max_batch_tokens, sizes.sequences);
}

SequenceRunner::SequenceRunner(worker::Backend* backend, const SequenceSizes& sizes)
    : backend_(backend), format_(backend->pools().front().format), tables_(sizes.sequences) {
  const auto blocks = static_cast<int32_t>(
      CeilDiv<int64_t>(sizes.tokens_each, backend->pools().front().block_tokens));
  for (int s = 0; s < sizes.sequences; ++s) {
    std::vector<int32_t> table(blocks);
    std::iota(table.begin(), table.end(), s * blocks);
    // Each group has a pool of its own, so the same numbers serve in each.
    tables_[s].assign(backend->model().groups.size(), table);
  }
}

std::vector<std::span<const int32_t>> SequenceRunner::TablesOf(int sequence) const {
  return {tables_[sequence].begin(), tables_[sequence].end()};
}

absl::StatusOr<worker::Logits> SequenceRunner::Decode(std::span<const int32_t> tokens,
                                                      int64_t position) {
  worker::Batch batch;
  for (size_t s = 0; s < tokens.size(); ++s) {
    batch.slices.push_back({.tokens = tokens.subspan(s, 1),
                            .first_position = position,
                            .kv_format = format_,
                            .block_tables = TablesOf(static_cast<int>(s)),
                            .logits_from = 0});
  }
  return backend_->Run(batch);
}

absl::Status SequenceRunner::Prefill(int sequence, std::span<const int32_t> tokens,
                                     const OnLogits& on_logits) {
  const auto all = static_cast<int64_t>(tokens.size());
  const int64_t most = on_logits
                           ? std::min(backend_->max_batch_tokens(), backend_->max_logit_rows())
                           : backend_->max_batch_tokens();
  for (int64_t done = 0; done < all;) {
    const int64_t count = std::min(most, all - done);
    int64_t logits_from = count;
    if (on_logits) logits_from = 0;
    if (!on_logits && done + count == all) logits_from = count - 1;
    worker::Batch batch;
    batch.slices.push_back({.tokens = tokens.subspan(done, count),
                            .first_position = done,
                            .kv_format = format_,
                            .block_tables = TablesOf(sequence),
                            .logits_from = logits_from});
    KVIST_ASSIGN_OR_RETURN(const worker::Logits logits, backend_->Run(batch));
    if (on_logits) on_logits(done, logits);
    done += count;
  }
  return absl::OkStatus();
}

}  // namespace kvist::services
