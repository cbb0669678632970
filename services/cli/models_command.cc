// kvist models: what is served, and which caches a request may ask for.
#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "services/cli/commands.h"

namespace kvist::services {
namespace {

struct ModelsFlags {
  std::string endpoint;
  std::string output;
};

nlohmann::ordered_json ModelJson(const v1::Model& model) {
  auto formats = nlohmann::ordered_json::array();
  for (const std::string& format : model.kv_formats()) formats.push_back(format);
  auto tiers = nlohmann::ordered_json::array();
  for (const std::string& tier : model.offload_tiers()) tiers.push_back(tier);
  return {{"name", model.name()},
          {"fingerprint", model.fingerprint()},
          {"architecture", model.architecture()},
          {"parameters", model.parameters()},
          {"context_tokens", model.context_tokens()},
          {"block_tokens", model.block_tokens()},
          {"kv_formats", std::move(formats)},
          {"offload_tiers", std::move(tiers)},
          {"chat_format", model.chat_format()},
          {"ready_workers", model.ready_workers()}};
}

// "-" for nothing: a cell that is empty would look like a shift of the columns.
std::string Cell(const std::string& text) { return text.empty() ? "-" : text; }

void PrintModels(const v1::ListModelsResponse& response) {
  std::vector<std::vector<std::string>> rows = {
      {"NAME", "ARCHITECTURE", "CONTEXT", "KV FORMATS", "OFFLOAD", "CHAT", "WORKERS"}};
  for (const v1::Model& model : response.models()) {
    rows.push_back({model.name(), model.architecture(), absl::StrCat(model.context_tokens()),
                    Cell(absl::StrJoin(model.kv_formats(), ",")),
                    Cell(absl::StrJoin(model.offload_tiers(), ",")), Cell(model.chat_format()),
                    absl::StrCat(model.ready_workers())});
  }
  PrintTable(rows);
}

int RunModels(const ModelsFlags& flags) {
  int exit_code = kExitOk;
  const auto client = ConnectOrReport(flags.endpoint, &exit_code);
  if (client == nullptr) return exit_code;
  const auto response = client->ListModels();
  if (!response.ok()) return ReportError(response.status());
  if (flags.output != "json") {
    PrintModels(*response);
    return kExitOk;
  }
  auto models = nlohmann::ordered_json::array();
  for (const v1::Model& model : response->models()) models.push_back(ModelJson(model));
  PrintJson({{"models", std::move(models)}});
  return kExitOk;
}

}  // namespace

void AddModels(CLI::App& app, Run* run) {
  auto flags = std::make_shared<ModelsFlags>();
  CLI::App* command = AddCommand(
      app, "models", "List the models served, and the caches that requests may ask for.",
      "  kvist models\n"
      "  kvist models --output json\n"
      "KV FORMATS are what --kv-format takes, the first is the default; OFFLOAD is what\n"
      "--offload takes beside off.\n",
      run, flags, &RunModels);
  AddEndpointFlag(command, &flags->endpoint);
  AddOutputFlag(command, &flags->output);
}

}  // namespace kvist::services
