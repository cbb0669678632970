// The same bits for a token, however its sequence was cut, batched, placed and computed: logits
// compared by memcmp (ARCHITECTURE.md 5).
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/model_files.h"
#include "tests/support/tiny_model.h"
#include "tests/worker/backend/sameness_cases.h"
#include "worker/kernels/kernel_table.h"

namespace kvist::testing {
namespace {

using worker::Backend;
using worker::CpuBackendOptions;
using worker::KvFormat;

void ExpectSameBits(const LogitRows& got, const LogitRows& want) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t row = 0; row < got.size(); ++row) {
    ASSERT_EQ(got[row].size(), want[row].size());
    for (const float logit : want[row]) ASSERT_FALSE(std::isnan(logit)) << "position " << row;
    ASSERT_EQ(std::memcmp(got[row].data(), want[row].data(), got[row].size() * sizeof(float)), 0)
        << "position " << row;
  }
}

// What a model is tried with: tiny ones by name, public ones by file.
struct Case {
  std::string name;
  std::string golden;  // file in tests/golden, without .gguf; empty: the public model
  size_t tokens;       // per sequence
  std::string weights = "native";
  bool holds_q4 = true;  // heads of a multiple of 32

  friend void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }
};

class SamenessTest : public ::testing::TestWithParam<Case> {
 protected:
  // Every format that can hold the model's heads.
  std::vector<KvFormat> Formats() const {
    std::vector<KvFormat> formats = {KvFormat::kF16, KvFormat::kQ8, KvFormat::kF32,
                                     KvFormat::kBF16};
    if (GetParam().holds_q4) formats.push_back(KvFormat::kQ4);
    return formats;
  }
  // Of those, the ones whose pages differ in kind.
  std::vector<KvFormat> KindsOfFormats() const {
    std::vector<KvFormat> formats = {KvFormat::kF16, KvFormat::kQ8};
    if (GetParam().holds_q4) formats.push_back(KvFormat::kQ4);
    return formats;
  }

  CpuBackendOptions Options() const {
    CpuBackendOptions options = TinyOptions();
    options.weights = GetParam().weights;
    options.kv_formats = Formats();
    if (GetParam().golden.empty()) {
      options.kernels = "auto";
      options.context_tokens = 1024;
    }
    return options;
  }

  std::unique_ptr<Backend> Open(const CpuBackendOptions& options) const {
    if (!GetParam().golden.empty()) return OpenTinyModel(GetParam().golden, options);
    const auto path = FindModelFile(kSmolLm2File);
    EXPECT_TRUE(path.ok()) << path.status();
    return OpenModel(*path, options);
  }

  std::mt19937_64 random_{20260801};
};

// The prefix is computed on one backend, its blocks are carried to a shuffled place on another.
void ExpectCarriedBlocksToContinue(Backend& backend, Backend& other,
                                   const std::vector<int32_t>& tokens, KvFormat format) {
  const LogitRows want = RunTokenByToken(backend, tokens, format);
  BlockSource blocks(other, 7);
  BlockSource source_blocks(backend, 9);
  TestSequence source(backend, source_blocks, format);
  TestSequence target(other, blocks, format);
  const size_t prefix = tokens.size() / 2;
  worker::Batch batch;
  batch.slices.push_back(source.Append({tokens.data(), prefix}, 0));
  RunBatch(backend, batch);
  const worker::SequenceSlice place = target.Append({tokens.data(), prefix}, 0);
  for (size_t group = 0; group < place.block_tables.size(); ++group) {
    size_t pool = 0;
    while (other.pools()[pool].format != format ||
           other.pools()[pool].group != static_cast<int32_t>(group)) {
      ++pool;
    }
    std::vector<std::byte> bytes(static_cast<size_t>(backend.pools()[pool].block_bytes));
    for (size_t i = 0; i < place.block_tables[group].size(); ++i) {
      const int32_t to = place.block_tables[group][i];
      const auto index = static_cast<int32_t>(pool);
      backend.ReadBlock(index, batch.slices[0].block_tables[group][i], bytes);
      const int32_t between = blocks.Take(index);
      other.WriteBlock(index, between, bytes);
      other.CopyBlock(index, between, to);
      blocks.GiveBack(index, between);
    }
  }
  LogitRows got = target.Run({tokens.data() + prefix, tokens.size() - prefix},
                             static_cast<int64_t>(tokens.size() - prefix));
  ExpectSameBits(got, {want.begin() + static_cast<std::ptrdiff_t>(prefix), want.end()});
}

TEST_P(SamenessTest, ChunksOfAnySizeGiveTheBitsOfSingleTokens) {
  const auto backend = Open(Options());
  const std::vector<int32_t> tokens = RandomTokens(*backend, GetParam().tokens, random_);
  for (const KvFormat format : Options().kv_formats) {
    SCOPED_TRACE(worker::KvFormatName(format));
    const LogitRows want = RunTokenByToken(*backend, tokens, format);
    for (const size_t most : {1, 3, 17, 64, 256}) {
      SCOPED_TRACE(most);
      ExpectSameBits(RunInChunks(*backend, tokens, format, most, random_), want);
    }
  }
}

TEST_P(SamenessTest, BatchMatesDoNotChangeASequence) {
  const auto backend = Open(Options());
  std::vector<std::vector<int32_t>> sequences;
  for (size_t i = 0; i < 6; ++i) {
    sequences.push_back(RandomTokens(*backend, 1 + random_() % GetParam().tokens, random_));
  }
  for (const KvFormat format : KindsOfFormats()) {
    SCOPED_TRACE(worker::KvFormatName(format));
    std::vector<LogitRows> want;
    for (const auto& tokens : sequences) want.push_back(RunTokenByToken(*backend, tokens, format));
    for (int round = 0; round < 3; ++round) {
      const std::vector<LogitRows> got = RunMixed(*backend, sequences, format, random_);
      for (size_t i = 0; i < sequences.size(); ++i) ExpectSameBits(got[i], want[i]);
    }
  }
}

TEST_P(SamenessTest, WindowsAndSinksGiveTheSameBitsInChunksOfAnySizeAndOnAnyKernels) {
  using cache_manager::AttentionSpan;
  const auto backend = Open(Options());
  const std::vector<int32_t> tokens = RandomTokens(*backend, GetParam().tokens, random_);
  const LogitRows full = RunTokenByToken(*backend, tokens, KvFormat::kF16);
  // A model of full size is slow on the reference table, and no other code than the tiny ones.
  const bool tiny = !GetParam().golden.empty();
  std::vector<AttentionSpan> spans = {{20, 3}};
  if (tiny) spans.insert(spans.end(), {{16, 0}, {33, 17}});
  for (const AttentionSpan& span : spans) {
    SCOPED_TRACE(cache_manager::AttentionText(span));
    const LogitRows want = RunTokenByToken(*backend, tokens, KvFormat::kF16, span);
    // Up to the window's length everything is seen; behind it something is missing.
    const size_t window = static_cast<size_t>(span.window_tokens);
    ExpectSameBits({want.begin(), want.begin() + static_cast<std::ptrdiff_t>(window)},
                   {full.begin(), full.begin() + static_cast<std::ptrdiff_t>(window)});
    if (tokens.size() > window + static_cast<size_t>(span.sink_tokens)) {
      EXPECT_NE(want.back(), full.back());
    }
    for (const size_t most : {3, 17, 64}) {
      ExpectSameBits(RunInChunks(*backend, tokens, KvFormat::kF16, most, random_, span), want);
    }
    if (!tiny) continue;
    for (const worker::KernelTable* kernels : worker::AvailableKernels()) {
      CpuBackendOptions options = Options();
      options.kernels = std::string(kernels->name);
      options.block_tokens = 32;
      const auto other = Open(options);
      ExpectSameBits(RunInChunks(*other, tokens, KvFormat::kF16, 256, random_, span), want);
    }
  }
}

TEST_P(SamenessTest, ThreadsBlockSizesAndKernelsDoNotChangeBits) {
  const auto first = Open(Options());
  const std::vector<std::vector<int32_t>> sequences = {
      RandomTokens(*first, GetParam().tokens, random_),
      RandomTokens(*first, 1 + GetParam().tokens / 3, random_)};
  std::map<KvFormat, std::vector<LogitRows>> want;
  for (const KvFormat format : KindsOfFormats()) {
    for (const auto& tokens : sequences) {
      want[format].push_back(RunTokenByToken(*first, tokens, format));
    }
  }
  int32_t block_tokens = 16;
  for (const worker::KernelTable* kernels : worker::AvailableKernels()) {
    for (const int threads : {1, 2, 3}) {
      CpuBackendOptions options = Options();
      options.kernels = std::string(kernels->name);
      options.threads = threads;
      options.block_tokens = block_tokens;
      SCOPED_TRACE(options.kernels + ", threads " + std::to_string(threads) + ", block " +
                   std::to_string(block_tokens));
      block_tokens = block_tokens == 128 ? 16 : 2 * block_tokens;
      const auto backend = Open(options);
      EXPECT_EQ(backend->numerics_id(), first->numerics_id());
      for (const auto& [format, rows] : want) {
        SCOPED_TRACE(worker::KvFormatName(format));
        ExpectSameBits(RunInChunks(*backend, sequences[0], format, 256, random_), rows[0]);
        const std::vector<LogitRows> got = RunMixed(*backend, sequences, format, random_);
        for (size_t i = 0; i < sequences.size(); ++i) ExpectSameBits(got[i], rows[i]);
      }
    }
  }
}

TEST_P(SamenessTest, BlocksCopiedMovedOrRestoredContinueWithTheSameBits) {
  const auto backend = Open(Options());
  const auto other = Open(Options());
  const std::vector<int32_t> tokens = RandomTokens(*backend, GetParam().tokens, random_);
  for (const KvFormat format : KindsOfFormats()) {
    SCOPED_TRACE(worker::KvFormatName(format));
    ExpectCarriedBlocksToContinue(*backend, *other, tokens, format);
  }
}

std::vector<Case> TinyCases() {
  return {
      {"LlamaQ4_1", "llama_a.Q4_1", 150, "native", false},
      {"LlamaQ5_1", "llama_a.Q5_1", 60, "native", false},
      {"LlamaQ4_K", "llama_k.Q4_K", 60},
      {"LlamaQ5_K", "llama_k.Q5_K", 40},
      {"LlamaQ6_K", "llama_k.Q6_K", 40},
      {"LlamaBf16", "llama_a.BF16", 60, "native", false},
      {"LlamaFloat32", "llama_a.Q4_0", 60, "float32", false},
      {"Qwen2Q8_0", "qwen2_a.Q8_0", 150, "native", false},
      {"Qwen2TiedF32", "qwen2_tied.F32", 60, "native", false},
      {"Qwen3Q5_0", "qwen3_a.Q5_0", 60},
      {"Qwen3F16", "qwen3_a.F16", 60},
      {"Gemma3Q4_0", "gemma3_a.Q4_0", 200},
  };
}

INSTANTIATE_TEST_SUITE_P(Tiny, SamenessTest, ::testing::ValuesIn(TinyCases()),
                         [](const auto& test) { return test.param.name; });
INSTANTIATE_TEST_SUITE_P(Model, SamenessTest, ::testing::Values(Case{"SmolLm2", "", 40}),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace kvist::testing
