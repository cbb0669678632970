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
struct Scores {
  int64_t tokens = 0;
  std::vector<TopRow> top;      // of the last position, best first
  double negative_logprob = 0;  // summed over all tokens but the first
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

absl::StatusOr<std::vector<int32_t>> InputIds(const ScoreFlags& flags,
                                              const text::Tokenizer& tokenizer) {
  std::vector<int32_t> ids = flags.ids;
  if (!flags.file.empty()) {
    KVIST_ASSIGN_OR_RETURN(const std::string input, ReadInput(flags.file));
    ids = PromptIds(tokenizer, input);
  }
  if (ids.empty()) return InvalidField("--ids", "there is no token");
  for (const int32_t id : ids) {
    if (id < 0 || id >= tokenizer.size()) {
      return InvalidField("--ids",
                          absl::StrCat(id, " is not in the vocabulary of ", tokenizer.size()));
    }
  }
  return ids;
}

absl::StatusOr<Scores> Score(const ScoreFlags& flags) {
  KVIST_ASSIGN_OR_RETURN(const auto file, OpenModel(flags.model.model));
  KVIST_ASSIGN_OR_RETURN(const auto tokenizer, LoadTokenizer(*file));
  KVIST_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, InputIds(flags, *tokenizer));
  KVIST_ASSIGN_OR_RETURN(worker::CpuBackendOptions options, BackendOptions(flags.model));
  options.max_logit_rows = kScoreLogitRows;
  const SequenceSizes sizes{.sequences = 1, .tokens_each = static_cast<int64_t>(ids.size())};
  SizeFor(sizes, &options);
  KVIST_ASSIGN_OR_RETURN(const auto backend, LoadBackend(*file, options));
  std::ofstream out;
  if (!flags.logits_out.empty()) {
    out.open(flags.logits_out, std::ios::binary | std::ios::trunc);
    if (!out) return InvalidField("--logits-out", "cannot be written");
  }
  Scores scores{.tokens = sizes.tokens_each};
  const auto on_logits = [&](int64_t first, const worker::Logits& logits) {
    for (int64_t r = 0; r < logits.rows; ++r) {
      const float* row = logits.row(r);
      if (out.is_open()) {
        out.write(reinterpret_cast<const char*>(row),
                  static_cast<std::streamsize>(logits.vocab * sizeof(float)));
      }
      const int64_t next = first + r + 1;
      if (next < sizes.tokens_each) {
        scores.negative_logprob += LogSum(row, logits.vocab) - row[ids[next]];
      } else {
        scores.top = TopOf(row, logits.vocab, flags.top, *tokenizer);
      }
    }
    std::fprintf(stderr, "%lld of %lld tokens\n", static_cast<long long>(first + logits.rows),
                 static_cast<long long>(sizes.tokens_each));
  };
  KVIST_RETURN_IF_ERROR(SequenceRunner(backend.get(), sizes).Prefill(0, ids, on_logits));
  if (out.is_open() && !out.flush()) return absl::DataLossError("--logits-out: the disk is full");
  return scores;
}

int RunScore(const ScoreFlags& flags) {
  const auto scores = Score(flags);
  if (!scores.ok()) return ReportLocalError(scores.status());
  nlohmann::ordered_json perplexity;  // null for a single token
  if (scores->tokens > 1) {
    perplexity = std::exp(scores->negative_logprob / static_cast<double>(scores->tokens - 1));
  }
  if (flags.output == "json") {
    auto top = nlohmann::ordered_json::array();
    for (const TopRow& row : scores->top) {
      top.push_back({{"id", row.id}, {"piece", row.piece}, {"logprob", row.logprob}});
    }
    PrintJson({{"top", std::move(top)}, {"tokens", scores->tokens}, {"perplexity", perplexity}});
    return kExitOk;
  }
  for (const TopRow& row : scores->top) {
    std::printf("%7d  %9.5f  \"%s\"\n", row.id, row.logprob,
                absl::Utf8SafeCEscape(row.piece).c_str());
  }
  std::printf("%lld tokens, perplexity %s\n", static_cast<long long>(scores->tokens),
              perplexity.dump().c_str());
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
  command->add_option("--top", flags->top, "likeliest next tokens to show")
      ->check(CLI::Range(0, 1'000'000))
      ->capture_default_str();
  command->add_option("--logits-out", flags->logits_out,
                      "write the logits of every position there, float32, one row per token");
  AddModelFlag(command, &flags->model.model);
  AddComputeFlags(command, &flags->model);
  command->add_option("--kv-format", flags->model.kv_formats, "f16, f32 or bf16")->expected(1);
  AddOutputFlag(command, &flags->output);
}

}  // namespace kvist::services
