#include "services/cli/command.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <iterator>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/status.h"

namespace kvist::services {
namespace {

constexpr std::chrono::milliseconds kConnectTimeout{3000};

int ExitCodeOf(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kOk:
      return kExitOk;
    case absl::StatusCode::kUnavailable:
      return kExitUnreachable;
    case absl::StatusCode::kDeadlineExceeded:
      return kExitDeadline;
    case absl::StatusCode::kCancelled:
      return kExitInterrupted;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kAborted:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kUnauthenticated:
      return kExitRefused;
    default:
      return kExitFailed;
  }
}

struct FieldOfFlag {
  std::string_view field;
  std::string_view flag;
};
// A flag of one name is the same field in every command that has it.
constexpr FieldOfFlag kFieldsOfFlags[] = {
    // CpuBackendOptions
    {"block_tokens", "--block-tokens"},
    {"context_tokens", "--context"},
    {"kv_bytes", "--kv-memory"},
    {"kv_formats", "--kv-formats"},
    {"max_batch_tokens", "--max-batch-tokens"},
    {"offload_bytes", "--offload-bytes"},
    {"offload_dir", "--offload-dir"},
    {"threads", "--threads"},
    {"weights", "--weights"},
    // GenerateRequest
    {"cache.allocation", "--cache"},
    {"cache.attention.sink_tokens", "--sinks"},
    {"cache.attention.window_tokens", "--window"},
    {"cache.kv_format", "--kv-format"},
    {"cache.offload", "--offload"},
    {"model", "--model-name"},
    {"priority", "--priority"},
    {"sampling.frequency_penalty", "--frequency-penalty"},
    {"sampling.logprobs", "--logprobs"},
    {"sampling.min_p", "--min-p"},
    {"sampling.presence_penalty", "--presence-penalty"},
    {"sampling.repetition_penalty", "--repetition-penalty"},
    {"sampling.seed", "--seed"},
    {"sampling.temperature", "--temperature"},
    {"sampling.top_k", "--top-k"},
    {"sampling.top_p", "--top-p"},
    {"session_id", "--session"},
    {"stop.max_new_tokens", "--max-new-tokens"},
    {"stop.min_new_tokens", "--min-new-tokens"},
    {"stop.stop_ids", "--stop-id"},
    {"stop.stop_strings", "--stop"},
};

void PrintError(const absl::Status& named, const std::string& advice) {
  const absl::Status status = NamingFlags(named);
  std::fprintf(stderr, "kvist: error: %s\n", std::string(status.message()).c_str());
  if (!advice.empty()) std::fprintf(stderr, "%s\n", advice.c_str());
}

}  // namespace

absl::Status NamingFlags(const absl::Status& status) {
  const std::string field = DetailsOf(status).field;
  const auto* const row =
      std::find_if(std::begin(kFieldsOfFlags), std::end(kFieldsOfFlags),
                   [&](const FieldOfFlag& known) { return known.field == field; });
  const std::string prefix = field + ":";
  if (row == std::end(kFieldsOfFlags) || !absl::StartsWith(status.message(), prefix)) return status;
  return WithDetails(
      absl::Status(status.code(),
                   absl::StrCat(ToAbsl(row->flag), ":", status.message().substr(prefix.size()))),
      DetailsOf(status));
}

int ReportError(const absl::Status& status) {
  PrintError(status, AdviceFor(status));
  return ExitCodeOf(status.code());
}

int ReportLocalError(const absl::Status& status) {
  PrintError(status, "");
  const bool usage = absl::IsInvalidArgument(status) || absl::IsOutOfRange(status) ||
                     absl::IsNotFound(status) || absl::IsPermissionDenied(status) ||
                     absl::IsDataLoss(status);
  return usage ? kExitUsage : kExitFailed;
}

void AddOutputFlag(CLI::App* command, std::string* output) {
  *output = "text";
  command
      ->add_option("--output", *output, "text, or json: one object on stdout, all else on stderr")
      ->check(CLI::IsMember({"text", "json"}))
      ->envname("KVIST_OUTPUT")
      ->capture_default_str();
}

void PrintJson(const nlohmann::ordered_json& value) {
  const std::string text = value.dump(/*indent=*/-1, ' ', /*ensure_ascii=*/false,
                                      nlohmann::json::error_handler_t::replace);
  std::printf("%s\n", text.c_str());
  std::fflush(stdout);
}

void AddEndpointFlag(CLI::App* command, std::string* endpoint) {
  *endpoint = kDefaultEndpoint;
  command
      ->add_option("--endpoint", *endpoint, "address of a frontend (kvist serve, kvist frontend)")
      ->envname("KVIST_ENDPOINT")
      ->capture_default_str();
}

std::unique_ptr<Client> ConnectOrReport(const std::string& endpoint, int* exit_code) {
  auto client = Client::Connect(endpoint, kConnectTimeout);
  if (client.ok()) return *std::move(client);
  *exit_code = absl::IsInvalidArgument(client.status()) ? ReportLocalError(client.status())
                                                        : ReportError(client.status());
  return nullptr;
}

void PrintTable(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  for (const auto& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      line += row[i];
      if (i + 1 < row.size()) line.append(widths[i] - row[i].size() + 2, ' ');
    }
    std::printf("%s\n", line.c_str());
  }
}

std::string HumanBytes(int64_t bytes) {
  constexpr std::array<const char*, 5> kUnits = {"B", "KiB", "MiB", "GiB", "TiB"};
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024.0 && unit + 1 < kUnits.size()) {
    value /= 1024.0;
    ++unit;
  }
  return unit == 0 ? absl::StrCat(bytes, " B") : absl::StrFormat("%.1f %s", value, kUnits[unit]);
}

std::string_view FinishReasonText(v1::FinishReason reason) {
  switch (reason) {
    case v1::STOP:
      return "stop";
    case v1::LENGTH:
      return "length";
    case v1::CANCELLED:
      return "cancelled";
    case v1::DEADLINE:
      return "deadline";
    default:
      return "error";
  }
}

}  // namespace kvist::services
