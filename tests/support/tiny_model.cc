#include "tests/support/tiny_model.h"

#include <algorithm>
#include <random>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/int_math.h"
#include "common/base/status.h"
#include "common/gguf/gguf_file.h"
#include "tests/support/model_files.h"

namespace kvist::testing {

using worker::Backend;

worker::CpuBackendOptions TinyOptions() {
  worker::CpuBackendOptions options;
  options.threads = 1;
  options.kernels = "scalar";
  options.blocks_per_pool = 64;
  options.max_logit_rows = options.max_batch_tokens;
  return options;
}

std::unique_ptr<Backend> OpenModel(const std::string& path,
                                   const worker::CpuBackendOptions& options) {
  auto file = gguf::File::Open(path);
  KVIST_CHECK(file.ok(), file.status().ToString());
  auto backend = worker::CreateCpuBackend(**file, options);
  KVIST_CHECK(backend.ok(), backend.status().ToString());
  return *std::move(backend);
}

std::unique_ptr<Backend> OpenTinyModel(std::string_view name,
                                       const worker::CpuBackendOptions& options) {
  return OpenModel(GoldenPath(absl::StrCat("tiny/", ToAbsl(name), ".gguf")), options);
}

BlockSource::BlockSource(Backend& backend, uint64_t seed) {
  std::mt19937_64 random(seed);
  for (size_t pool = 0; pool < backend.pools().size(); ++pool) {
    const worker::PoolSpec& spec = backend.pools()[pool];
    std::vector<int32_t> blocks(static_cast<size_t>(spec.num_blocks));
    for (size_t i = 0; i < blocks.size(); ++i) {
      blocks[i] = spec.num_blocks - 1 - static_cast<int32_t>(i);
    }
    if (seed != 0) {
      std::shuffle(blocks.begin(), blocks.end(), random);
      std::vector<std::byte> garbage(static_cast<size_t>(spec.block_bytes));
      for (const int32_t block : blocks) {
        const bool nans = random() % 2 == 0;
        for (std::byte& byte : garbage) byte = static_cast<std::byte>(nans ? 0xff : random());
        backend.WriteBlock(static_cast<int32_t>(pool), block, garbage);
      }
    }
    free_.push_back(std::move(blocks));
  }
}

int32_t BlockSource::Take(int32_t pool) {
  std::vector<int32_t>& blocks = free_[static_cast<size_t>(pool)];
  KVIST_CHECK(!blocks.empty(), "the test needs more blocks per pool");
  const int32_t block = blocks.back();
  blocks.pop_back();
  return block;
}

void BlockSource::GiveBack(int32_t pool, int32_t block) {
  free_[static_cast<size_t>(pool)].push_back(block);
}

TestSequence::TestSequence(Backend& backend, BlockSource& blocks, worker::KvFormat format,
                           const cache_manager::AttentionSpan& attention)
    : backend_(backend), blocks_(blocks), format_(format), attention_(attention) {
  const std::vector<worker::PoolSpec>& specs = backend.pools();
  tables_.resize(backend.model().groups.size());
  for (size_t group = 0; group < tables_.size(); ++group) {
    const auto spec = std::find_if(specs.begin(), specs.end(), [&](const worker::PoolSpec& s) {
      return static_cast<size_t>(s.group) == group && s.format == format;
    });
    KVIST_CHECK(spec != specs.end(), "the backend serves the format");
    pools_.push_back(static_cast<int32_t>(spec - specs.begin()));
  }
}

TestSequence::~TestSequence() {
  for (size_t group = 0; group < tables_.size(); ++group) {
    for (const int32_t block : tables_[group]) {
      if (block >= 0) blocks_.GiveBack(pools_[group], block);
    }
  }
}

worker::SequenceSlice TestSequence::Append(std::span<const int32_t> tokens, int64_t logit_rows) {
  const int64_t count = static_cast<int64_t>(tokens.size());
  worker::SequenceSlice slice{.tokens = tokens,
                              .first_position = position_,
                              .kv_format = format_,
                              .attention = attention_,
                              .block_tables = {},
                              .logits_from = count - logit_rows};
  for (size_t group = 0; group < tables_.size(); ++group) {
    const int64_t block_tokens = backend_.pools()[static_cast<size_t>(pools_[group])].block_tokens;
    const auto [window, sinks] =
        cache_manager::SpanInLayers(backend_.model().groups[group].window, attention_);
    std::vector<int32_t>& table = tables_[group];
    const int64_t first_seen = window == 0 ? 0 : std::max<int64_t>(0, position_ - window + 1);
    for (int64_t block = CeilDiv(sinks, block_tokens); block < first_seen / block_tokens; ++block) {
      int32_t& physical = table[static_cast<size_t>(block)];
      if (physical >= 0) blocks_.GiveBack(pools_[group], std::exchange(physical, -1));
    }
    while (static_cast<int64_t>(table.size()) < CeilDiv(position_ + count, block_tokens)) {
      table.push_back(blocks_.Take(pools_[group]));
    }
    slice.block_tables.emplace_back(table);
  }
  position_ += count;
  return slice;
}

std::vector<std::vector<float>> TestSequence::Run(std::span<const int32_t> tokens,
                                                  int64_t logit_rows) {
  worker::Batch batch;
  batch.slices.push_back(Append(tokens, logit_rows));
  return RunBatch(backend_, batch);
}

std::vector<std::vector<float>> CopyLogits(const worker::Logits& logits) {
  std::vector<std::vector<float>> rows;
  for (int64_t row = 0; row < logits.rows; ++row) {
    rows.emplace_back(logits.row(row), logits.row(row) + logits.vocab);
  }
  return rows;
}

std::vector<std::vector<float>> RunBatch(Backend& backend, const worker::Batch& batch) {
  const absl::StatusOr<worker::Logits> logits = backend.Run(batch);
  KVIST_CHECK(logits.ok(), logits.status().ToString());
  return CopyLogits(*logits);
}

}  // namespace kvist::testing
