// kvist score: what a model thinks of a text, token by token, in this process.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "services/cli/commands.h"
#include "services/cli/model_flags.h"
#include "services/cli/read_input.h"
#include "services/cli/sequence_runner.h"

namespace kvist::services {
namespace {

constexpr int64_t kScoreLogitRows = 64;

struct ScoreFlags {
  std::vector<int32_t> ids;
  std::string file;
  int64_t chunk_tokens = 0;  // 0: the text is one piece
  int top = 10;
  std::string logits_out;
  ModelFlags model;
  std::string output;
};

struct TopRow {
  int32_t id = 0;
  std::string piece;
  double logprob = 0;
};
struct ChunkScore {
  int64_t tokens = 0;
  double negative_logprob = 0;  // summed over all tokens but the first
};
struct Scores {
  std::vector<ChunkScore> chunks;  // at least one
  std::vector<TopRow> top;         // of the last position, best first

  int64_t tokens() const {
    int64_t sum = 0;
    for (const ChunkScore& chunk : chunks) sum += chunk.tokens;
    return sum;
  }
  // Of all scored tokens; null if there is none.
  nlohmann::ordered_json Perplexity() const {
    double negative_logprob = 0;
    int64_t scored = 0;
    for (const ChunkScore& chunk : chunks) {
      negative_logprob += chunk.negative_logprob;
      scored += chunk.tokens - 1;
    }
    if (scored == 0) return nullptr;
    return std::exp(negative_logprob / static_cast<double>(scored));
  }
};

// log of the sum of exp over a row, so that logprob(id) = row[id] - it.
double LogSum(const float* row, int64_t vocab) {
  const double best = *std::max_element(row, row + vocab);
  double sum = 0;
  for (int64_t i = 0; i < vocab; ++i) sum += std::exp(static_cast<double>(row[i]) - best);
  return best + std::log(sum);
}

std::vector<TopRow> TopOf(const float* row, int64_t vocab, int count,
                          const text::Tokenizer& tokenizer) {
  std::vector<int32_t> order(vocab);
  std::iota(order.begin(), order.end(), 0);
  const auto end = order.begin() + std::min<int64_t>(count, vocab);
  std::partial_sort(order.begin(), end, order.end(), [&](int32_t a, int32_t b) {
    return row[a] != row[b] ? row[a] > row[b] : a < b;
  });
  const double sum = LogSum(row, vocab);
  std::vector<TopRow> top;
  for (auto id = order.begin(); id != end; ++id) {
    top.push_back({.id = *id,
                   .piece = std::string(tokenizer.TokenBytes(*id)),
                   .logprob = static_cast<double>(row[*id]) - sum});
  }
  return top;
}

// The text's pieces: all of it, or as many tokens each as asked for, of which the first is the
// model's first token where it wants one.
absl::StatusOr<std::vector<std::vector<int32_t>>> InputChunks(const ScoreFlags& flags,
                                                              const text::Tokenizer& tokenizer) {
  if (flags.chunk_tokens == 1) return InvalidField("--chunk", "a piece of one token has no score");
  std::vector<int32_t> ids = flags.ids;
  std::vector<int32_t> head;
  if (!flags.file.empty()) {
    KVIST_ASSIGN_OR_RETURN(const std::string input, ReadInput(flags.file));
    ids = tokenizer.Encode(input, text::ControlTokens::kPlain);
    const text::Vocabulary& vocabulary = tokenizer.vocabulary();
    if (vocabulary.add_bos && vocabulary.bos_id.has_value()) head = {*vocabulary.bos_id};
  }
  if (ids.empty() && head.empty()) return InvalidField("--ids", "there is no token");
  for (const int32_t id : ids) {
    if (id < 0 || id >= tokenizer.size()) {
      return InvalidField("--ids",
                          absl::StrCat(id, " is not in the vocabulary of ", tokenizer.size()));
    }
  }
  const size_t most = flags.chunk_tokens == 0
                          ? std::max<size_t>(1, ids.size())
                          : static_cast<size_t>(flags.chunk_tokens) - head.size();
  std::vector<std::vector<int32_t>> chunks;
  for (size_t begin = 0; begin == 0 || begin < ids.size(); begin += most) {
    chunks.push_back(head);
    const size_t end = std::min(ids.size(), begin + most);
    chunks.back().insert(chunks.back().end(), ids.begin() + static_cast<std::ptrdiff_t>(begin),
                         ids.begin() + static_cast<std::ptrdiff_t>(end));
  }
  return chunks;
}

absl::StatusOr<Scores> Score(const ScoreFlags& flags) {
  KVIST_ASSIGN_OR_RETURN(const auto file, OpenModel(flags.model.model));
  KVIST_ASSIGN_OR_RETURN(const auto tokenizer, LoadTokenizer(*file));
  KVIST_ASSIGN_OR_RETURN(const auto chunks, InputChunks(flags, *tokenizer));
  KVIST_ASSIGN_OR_RETURN(worker::CpuBackendOptions options, BackendOptions(flags.model));
  options.max_logit_rows = kScoreLogitRows;
  // The first piece is the longest.
  const SequenceSizes sizes{.sequences = 1,
                            .tokens_each = static_cast<int64_t>(chunks.front().size())};
  SizeFor(sizes, &options);
  KVIST_ASSIGN_OR_RETURN(const auto backend, LoadBackend(*file, options));
  std::ofstream out;
  if (!flags.logits_out.empty()) {
    out.open(flags.logits_out, std::ios::binary | std::ios::trunc);
    if (!out) return InvalidField("--logits-out", "cannot be written");
  }
  SequenceRunner runner(backend.get(), sizes);
  Scores scores;
  for (const std::vector<int32_t>& ids : chunks) {
    ChunkScore& chunk = scores.chunks.emplace_back();
    const auto on_logits = [&](int64_t first, const worker::Logits& logits) {
      for (int64_t r = 0; r < logits.rows; ++r) {
        const float* row = logits.row(r);
        if (out.is_open()) {
          out.write(reinterpret_cast<const char*>(row),
                    static_cast<std::streamsize>(logits.vocab * sizeof(float)));
        }
        const auto next = static_cast<size_t>(first + r + 1);
        if (next < ids.size()) {
          chunk.negative_logprob += LogSum(row, logits.vocab) - row[ids[next]];
        } else if (&ids == &chunks.back()) {
          scores.top = TopOf(row, logits.vocab, flags.top, *tokenizer);
        }
      }
      chunk.tokens += logits.rows;
      std::fprintf(stderr, "piece %zu of %zu: %lld of %zu tokens\n", scores.chunks.size(),
                   chunks.size(), static_cast<long long>(chunk.tokens), ids.size());
    };
    KVIST_RETURN_IF_ERROR(runner.Prefill(0, ids, on_logits));
  }
  if (out.is_open() && !out.flush()) return absl::DataLossError("--logits-out: the disk is full");
  return scores;
}

int RunScore(const ScoreFlags& flags) {
  const auto scores = Score(flags);
  if (!scores.ok()) return ReportLocalError(scores.status());
  if (flags.output == "json") {
    auto top = nlohmann::ordered_json::array();
    for (const TopRow& row : scores->top) {
      top.push_back({{"id", row.id}, {"piece", row.piece}, {"logprob", row.logprob}});
    }
    auto chunks = nlohmann::ordered_json::array();
    for (const ChunkScore& chunk : scores->chunks) {
      chunks.push_back({{"tokens", chunk.tokens}, {"negative_logprob", chunk.negative_logprob}});
    }
    PrintJson({{"top", std::move(top)},
               {"tokens", scores->tokens()},
               {"perplexity", scores->Perplexity()},
               {"chunks", std::move(chunks)}});
    return kExitOk;
  }
  for (const TopRow& row : scores->top) {
    std::printf("%7d  %9.5f  \"%s\"\n", row.id, row.logprob,
                absl::Utf8SafeCEscape(row.piece).c_str());
  }
  std::printf("%lld tokens, perplexity %s\n", static_cast<long long>(scores->tokens()),
              scores->Perplexity().dump().c_str());
  return kExitOk;
}

}  // namespace

void AddScore(CLI::App& app, Run* run) {
  auto flags = std::make_shared<ScoreFlags>();
  CLI::App* command = AddCommand(app, "score", "Tell how likely a model finds a text.",
                                 "  kvist score --file story.txt --model smollm2 --top 5\n"
                                 "  kvist score --ids 1,22,33 --model smollm2 --output json\n",
                                 run, flags, &RunScore);
  CLI::App* input = command->add_option_group("input");
  input->add_option("--ids", flags->ids, "token ids, by commas")->delimiter(',');
  input->add_option("--file", flags->file, "or a text file; - reads standard input");
  input->require_option(1);
  command
      ->add_option("--chunk", flags->chunk_tokens,
                   "score pieces of that many tokens, each as a text of its own; 0: one piece")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 20))
      ->capture_default_str();
  command->add_option("--top", flags->top, "likeliest next tokens to show")
      ->check(CLI::Range(0, 1'000'000))
      ->capture_default_str();
  command->add_option("--logits-out", flags->logits_out,
                      "write the logits of every position there, float32, one row per token");
  AddModelFlag(command, &flags->model.model);
  AddComputeFlags(command, &flags->model);
  command->add_option("--kv-format", flags->model.kv_formats, "f32, f16, bf16, q8 or q4")
      ->expected(1);
  AddOutputFlag(command, &flags->output);
}

}  // namespace kvist::services
