// What all subcommands share: exit codes, how errors are told, where output goes.
#ifndef KVIST_SERVICES_CLI_COMMAND_H_
#define KVIST_SERVICES_CLI_COMMAND_H_

#include <CLI/App.hpp>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "services/client/client.h"

namespace kvist::services {

// The process's exit status.
enum ExitCode : int {
  kExitOk = 0,
  kExitFailed = 1,       // something broke, here or at the server
  kExitUsage = 2,        // wrong flags, or a file they name that cannot be used
  kExitUnreachable = 3,  // nobody answers, or what answers has no worker or manager
  kExitRefused =
      4,  // the server refused: a value, an unknown session, two turns at once, too much load
  kExitDeadline = 5,      // the time was up; what came before was printed
  kExitInterrupted = 130  // Ctrl-C
};

// `status` with the flag in place of the field at fault, where a person typed one: "kv_bytes: too
// small" is "--kv-memory: too small". The same for all else.
absl::Status NamingFlags(const absl::Status& status);

// Prints "kvist: error: ..." (by NamingFlags) and advice on stderr. Returns the exit code of
// `status`: as the comments above, by its code.
int ReportError(const absl::Status& status);
// As ReportError for what concerns only this machine (a model file, an address to listen on):
// kExitUsage for INVALID_ARGUMENT, OUT_OF_RANGE, NOT_FOUND, PERMISSION_DENIED, DATA_LOSS; else
// kExitFailed.
int ReportLocalError(const absl::Status& status);

// Set by the subcommand that was chosen, run after parsing. Returns the exit code.
using Run = std::function<int()>;

// Adds `name` with its help and examples. Options are members of `*options`, which lives as long as
// the app.
template <typename Options>
CLI::App* AddCommand(CLI::App& parent, const char* name, const char* help, const char* examples,
                     Run* run, const std::shared_ptr<Options>& options,
                     int (*body)(const Options&)) {
  CLI::App* command = parent.add_subcommand(name, help);
  command->footer(std::string("Examples:\n") + examples);
  command->callback([=] { *run = [=] { return body(*options); }; });
  return command;
}

// --output text|json.
void AddOutputFlag(CLI::App* command, std::string* output);
// One object on stdout. Bytes that are no UTF-8 become U+FFFD.
void PrintJson(const nlohmann::ordered_json& value);

// --endpoint, KVIST_ENDPOINT.
inline constexpr char kDefaultEndpoint[] = "127.0.0.1:7070";
void AddEndpointFlag(CLI::App* command, std::string* endpoint);
// Connects, or reports. nullptr: `*exit_code` is set.
std::unique_ptr<Client> ConnectOrReport(const std::string& endpoint, int* exit_code);

// A table for people: columns padded to their widest cell, two spaces between.
void PrintTable(const std::vector<std::vector<std::string>>& rows);
// 1536 -> "1.5 KiB".
std::string HumanBytes(int64_t bytes);
// "stop", "length", "cancelled", "deadline", "error".
std::string_view FinishReasonText(v1::FinishReason reason);

}  // namespace kvist::services

#endif  // KVIST_SERVICES_CLI_COMMAND_H_
