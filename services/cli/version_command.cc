// kvist version and kvist completion.
#include <grpcpp/grpcpp.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "services/cli/commands.h"
#include "worker/kernels/kernel_table.h"

namespace kvist::services {
namespace {

struct VersionFlags {
  std::string output;
};

int RunVersion(const VersionFlags& flags) {
  std::string kernels;
  for (const worker::KernelTable* table : worker::AvailableKernels()) {
    absl::StrAppend(&kernels, kernels.empty() ? "" : ",", std::string(table->name));
  }
  if (flags.output == "json") {
    PrintJson({{"version", KVIST_VERSION}, {"grpc", grpc::Version()}, {"kernels", kernels}});
  } else {
    std::printf("kvist %s (gRPC %s; kernels here: %s)\n", KVIST_VERSION, grpc::Version().c_str(),
                kernels.c_str());
  }
  return kExitOk;
}

// The names of a command's long options, those of its groups included.
void AppendOptions(const CLI::App& command, std::string* words) {
  for (const CLI::Option* option : command.get_options()) {
    for (const std::string& name : option->get_lnames()) absl::StrAppend(words, "--", name, " ");
  }
  for (const CLI::App* child : command.get_subcommands([](const CLI::App*) { return true; })) {
    if (child->get_name().empty()) AppendOptions(*child, words);
  }
}

// Lines of bash's case: the words that may follow each command's path.
void AppendCases(const CLI::App& command, const std::string& path, std::string* script) {
  const auto children =
      command.get_subcommands([](const CLI::App* child) { return !child->get_name().empty(); });
  std::string words;
  for (const CLI::App* child : children) absl::StrAppend(&words, child->get_name(), " ");
  AppendOptions(command, &words);
  absl::StrAppend(script, "    \"", path, "\") words=\"", words, "\" ;;\n");
  for (const CLI::App* child : children) {
    AppendCases(*child, absl::StrCat(path, " ", child->get_name()), script);
  }
}

std::string BashCompletion(const CLI::App& app) {
  std::string script =
      "# bash completion of kvist. To install:\n"
      "#   kvist completion bash > ~/.local/share/bash-completion/completions/kvist\n"
      "_kvist() {\n"
      "  local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]} path=kvist "
      "word words=\n"
      "  for word in \"${COMP_WORDS[@]:1:COMP_CWORD-1}\"; do\n"
      "    case $word in -*) ;; *) [[ \" $(_kvist_words \"$path\") \" == *\" $word \"* ]] && "
      "path+=\" $word\" ;; esac\n"
      "  done\n"
      "  case $previous in\n"
      "    --model) COMPREPLY=($(compgen -W \"smollm2 gemma3\" -- \"$current\") $(compgen -f -X "
      "'!*.gguf' -- \"$current\")); return ;;\n"
      "    --output) COMPREPLY=($(compgen -W \"text json\" -- \"$current\")); return ;;\n"
      "    --file|--data-dir|--logits-out) COMPREPLY=($(compgen -f -- \"$current\")); return ;;\n"
      "  esac\n"
      "  COMPREPLY=($(compgen -W \"$(_kvist_words \"$path\")\" -- \"$current\"))\n"
      "}\n"
      "_kvist_words() {\n"
      "  local words=\n"
      "  case $1 in\n";
  AppendCases(app, "kvist", &script);
  script +=
      "  esac\n"
      "  printf '%s' \"$words\"\n"
      "}\n"
      "complete -F _kvist kvist\n";
  return script;
}

}  // namespace

void AddVersion(CLI::App& app, Run* run) {
  auto flags = std::make_shared<VersionFlags>();
  CLI::App* command =
      AddCommand(app, "version", "Tell the version.", "  kvist version\n", run, flags, &RunVersion);
  AddOutputFlag(command, &flags->output);
}

void AddCompletion(CLI::App& app, Run* run) {
  CLI::App* command = app.add_subcommand("completion", "Print completions for a shell.");
  command->footer(
      "Examples:\n"
      "  kvist completion bash > ~/.local/share/bash-completion/completions/kvist\n"
      "  source <(kvist completion bash)");
  auto shell = std::make_shared<std::string>();
  command->add_option("shell", *shell, "bash")->required()->check(CLI::IsMember({"bash"}));
  command->callback([&app, shell, run] {
    *run = [&app, shell] {
      std::fputs(BashCompletion(app).c_str(), stdout);
      return static_cast<int>(kExitOk);
    };
  });
}

}  // namespace kvist::services
