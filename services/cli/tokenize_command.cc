// kvist tokenize: text to token ids, by a model file's vocabulary.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "common/base/status.h"
#include "services/cli/commands.h"
#include "services/cli/model_flags.h"
#include "services/cli/read_input.h"

namespace kvist::services {
namespace {

struct TokenizeFlags {
  std::string text;
  std::string file;
  std::string model;
  bool special = false;
  bool bos = false;
  std::string output;
};

struct Pieces {
  std::vector<int32_t> ids;
  std::vector<std::string> pieces;
};

absl::StatusOr<Pieces> Tokenize(const TokenizeFlags& flags) {
  KVIST_ASSIGN_OR_RETURN(const auto file, OpenModel(flags.model));
  KVIST_ASSIGN_OR_RETURN(const auto tokenizer, LoadTokenizer(*file));
  std::string input = flags.text;
  if (!flags.file.empty()) {
    KVIST_ASSIGN_OR_RETURN(input, ReadInput(flags.file));
  }
  Pieces pieces;
  pieces.ids = tokenizer->Encode(
      input, flags.special ? text::ControlTokens::kRecognised : text::ControlTokens::kPlain);
  const auto& bos = tokenizer->vocabulary().bos_id;
  if (flags.bos && bos.has_value()) pieces.ids.insert(pieces.ids.begin(), *bos);
  for (const int32_t id : pieces.ids) pieces.pieces.emplace_back(tokenizer->TokenBytes(id));
  return pieces;
}

int RunTokenize(const TokenizeFlags& flags) {
  const auto pieces = Tokenize(flags);
  if (!pieces.ok()) return ReportLocalError(pieces.status());
  if (flags.output == "json") {
    PrintJson({{"token_ids", pieces->ids}, {"pieces", pieces->pieces}});
    return kExitOk;
  }
  for (size_t i = 0; i < pieces->ids.size(); ++i) {
    std::printf("%7d  \"%s\"\n", pieces->ids[i], absl::Utf8SafeCEscape(pieces->pieces[i]).c_str());
  }
  std::fprintf(stderr, "%zu tokens\n", pieces->ids.size());
  return kExitOk;
}

}  // namespace

void AddTokenize(CLI::App& app, Run* run) {
  auto flags = std::make_shared<TokenizeFlags>();
  CLI::App* command =
      AddCommand(app, "tokenize", "Show the tokens of a text.",
                 "  kvist tokenize \"The red cat\" --model smollm2\n"
                 "  kvist tokenize --file story.txt --model smollm2 --output json\n",
                 run, flags, &RunTokenize);
  CLI::App* input = command->add_option_group("input");
  input->add_option("text", flags->text, "the text");
  input->add_option("--file", flags->file, "or a file; - reads standard input");
  input->require_option(1);
  AddModelFlag(command, &flags->model);
  command->add_flag("--special", flags->special,
                    "control tokens spelled in the text are recognised");
  command->add_flag("--bos", flags->bos,
                    "put the beginning-of-sequence token first, if there is one");
  AddOutputFlag(command, &flags->output);
}

}  // namespace kvist::services
