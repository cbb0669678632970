// kvist doctor: what this machine can do, for a model, and what to change.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/base/status.h"
#include "services/cli/commands.h"
#include "services/cli/doctor.h"
#include "services/cli/model_flags.h"
#include "worker/backend/memory_available.h"
#include "worker/kernels/kernel_table.h"

namespace kvist::services {
namespace {

struct DoctorFlags {
  ModelFlags model;
  std::string output;
};

absl::StatusOr<Diagnosis> Diagnose(const DoctorFlags& flags) {
  Diagnosis diagnosis;
  // Before anything is measured: this command is no load of the machine.
  diagnosis.machine = ReadMachineFacts();
  KVIST_ASSIGN_OR_RETURN(diagnosis.available_bytes, worker::MemoryAvailableBytes());
  diagnosis.threads = ComputeThreads(flags.model);
  KVIST_ASSIGN_OR_RETURN(const worker::KernelTable* kernels,
                         worker::SelectKernels(flags.model.kernels));
  diagnosis.kernels = std::string(kernels->name);
  diagnosis.kernels_asked_for = flags.model.kernels != "auto";
  for (const worker::KernelTable* table : worker::AvailableKernels()) {
    diagnosis.known_kernels.emplace_back(table->name);
  }
  if (!flags.model.model.empty()) {
    KVIST_ASSIGN_OR_RETURN(const auto file, OpenModel(flags.model.model));
    KVIST_ASSIGN_OR_RETURN(const worker::CpuBackendOptions options, BackendOptions(flags.model));
    KVIST_ASSIGN_OR_RETURN(diagnosis.model, FitModel(*file, options, diagnosis.available_bytes));
  }
  std::fprintf(stderr, "measuring memory and multiply-adds\n");
  KVIST_ASSIGN_OR_RETURN(diagnosis.limits, MeasureLimits(diagnosis.threads, kernels->name));
  return diagnosis;
}

nlohmann::ordered_json ModelJson(const Diagnosis& diagnosis) {
  const ModelFit& model = *diagnosis.model;
  auto formats = nlohmann::ordered_json::array();
  for (const FormatFit& format : model.formats) {
    formats.push_back({{"format", format.format},
                       {"kv_memory_bytes", format.kv_memory_bytes},
                       {"kv_bytes_per_token", format.bytes_per_token},
                       {"kv_bytes_per_token_beyond_window", format.bytes_beyond_window},
                       {"tokens", format.tokens},
                       {"sessions", format.sessions}});
  }
  return {{"name", model.name},
          {"architecture", model.architecture},
          {"parameters", model.parameters},
          {"context_tokens", model.context_tokens},
          {"model_context_tokens", model.model_context_tokens},
          {"weight_bytes", model.weight_bytes},
          {"step_bytes", model.step_bytes},
          {"kv_memory_bytes", model.kv_memory_bytes},
          {"session_tokens", kDoctorSessionTokens},
          {"formats", formats},
          {"decode_limit_tokens_per_second", diagnosis.DecodeLimit()}};
}

nlohmann::ordered_json JsonOf(const Diagnosis& diagnosis) {
  const MachineFacts& machine = diagnosis.machine;
  nlohmann::ordered_json json = {
      {"cpu", machine.cpu},
      {"instruction_sets", machine.instruction_sets},
      {"kernels", diagnosis.kernels},
      {"kernels_reason", diagnosis.KernelsReason()},
      {"threads", diagnosis.threads},
      {"cores",
       {{"online", machine.online_cores},
        {"usable", machine.usable_cores},
        {"quota", machine.quota_cores},
        {"load", machine.load_cores}}},
      {"memory",
       {{"bytes", machine.memory_bytes},
        {"available_bytes", diagnosis.available_bytes},
        {"huge_pages", machine.huge_pages}}},
      {"limit",
       {{"memory_bandwidth_bytes_per_second", diagnosis.limits.memory_bandwidth_bytes_per_second},
        {"int8_macs_per_second", diagnosis.limits.int8_macs_per_second}}}};
  if (diagnosis.model.has_value()) json["model"] = ModelJson(diagnosis);
  json["warnings"] = WarningsOf(diagnosis);
  return json;
}

std::string CoresText(const MachineFacts& machine) {
  std::string text = absl::StrCat(machine.usable_cores, " of ", machine.online_cores, " cores");
  if (machine.quota_cores > 0) {
    absl::StrAppend(&text, absl::StrFormat(", a quota of %.1f", machine.quota_cores));
  }
  return absl::StrCat(text, absl::StrFormat(", load %.1f", machine.load_cores));
}

void PrintModel(const Diagnosis& diagnosis) {
  const ModelFit& model = *diagnosis.model;
  std::printf("\n");
  PrintTable({{"model", absl::StrCat(model.name, " (", model.architecture, ", ",
                                     model.parameters / 1'000'000, " M parameters)")},
              {"weights", absl::StrCat(HumanBytes(model.weight_bytes), ", ",
                                       HumanBytes(model.step_bytes), " read by each decode step")},
              {"context", absl::StrCat(model.context_tokens, " of the model's ",
                                       model.model_context_tokens, " tokens")},
              {"KV memory", HumanBytes(model.kv_memory_bytes)},
              {"decode limit", absl::StrFormat("%.0f tok/s of one sequence, by the bandwidth",
                                               diagnosis.DecodeLimit())}});
  std::printf("\n");
  std::vector<std::vector<std::string>> table = {
      {"KV format", "bytes per token", "beyond the window", "tokens that fit",
       absl::StrCat("sessions of ", kDoctorSessionTokens)}};
  for (const FormatFit& format : model.formats) {
    table.push_back({format.format, absl::StrCat(format.bytes_per_token),
                     absl::StrCat(format.bytes_beyond_window), absl::StrCat(format.tokens),
                     absl::StrCat(format.sessions)});
  }
  PrintTable(table);
}

void PrintPeople(const Diagnosis& diagnosis) {
  const MachineFacts& machine = diagnosis.machine;
  PrintTable(
      {{"CPU", machine.cpu},
       {"instruction sets", absl::StrJoin(machine.instruction_sets, " ")},
       {"kernels", absl::StrCat(diagnosis.kernels, " (", diagnosis.KernelsReason(), ")")},
       {"threads", absl::StrCat(diagnosis.threads, " on ", CoresText(machine))},
       {"memory", absl::StrCat(HumanBytes(diagnosis.available_bytes), " available of ",
                               HumanBytes(machine.memory_bytes))},
       {"huge pages", machine.huge_pages},
       {"bandwidth", absl::StrFormat("%.1f GB/s read, measured",
                                     diagnosis.limits.memory_bandwidth_bytes_per_second / 1e9)},
       {"int8 peak", absl::StrFormat("%.0f G multiply-adds/s, measured",
                                     diagnosis.limits.int8_macs_per_second / 1e9)}});
  if (diagnosis.model.has_value()) PrintModel(diagnosis);
  const std::vector<std::string> warnings = WarningsOf(diagnosis);
  std::printf("\n%s\n", warnings.empty() ? "No warnings." : "Warnings:");
  for (const std::string& warning : warnings) std::printf("- %s\n", warning.c_str());
}

int RunDoctor(const DoctorFlags& flags) {
  const auto diagnosis = Diagnose(flags);
  if (!diagnosis.ok()) return ReportLocalError(diagnosis.status());
  if (flags.output == "json") {
    PrintJson(JsonOf(*diagnosis));
  } else {
    PrintPeople(*diagnosis);
  }
  return kExitOk;
}

}  // namespace

void AddDoctor(CLI::App& app, Run* run) {
  auto flags = std::make_shared<DoctorFlags>();
  CLI::App* command =
      AddCommand(app, "doctor",
                 "What this machine can do: CPU, kernels, memory, measured limits; with a model, "
                 "what fits and how fast it can be. Loads nothing.",
                 "  kvist doctor\n"
                 "  kvist doctor --model smollm2\n"
                 "  kvist doctor --model gemma3 --kv-memory 512MB --output json\n",
                 run, flags, &RunDoctor);
  AddModelFlag(command, &flags->model.model)->required(false);
  AddComputeFlags(command, &flags->model);
  AddCacheFlags(command, &flags->model);
  AddOutputFlag(command, &flags->output);
}

}  // namespace kvist::services
