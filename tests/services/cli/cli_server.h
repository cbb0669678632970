// A server of a tiny model and the program kvist run against it, as scripts do.
#ifndef KVIST_TESTS_SERVICES_CLI_CLI_SERVER_H_
#define KVIST_TESTS_SERVICES_CLI_CLI_SERVER_H_

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/support/subprocess.h"

namespace kvist::testing {

inline constexpr int kCliPatienceSeconds = 60;

struct CliResult {
  int exit_code = -1;
  std::string output;
  std::string errors;
};

// `kvist serve` with a folder of its own for models and state. Single-threaded.
class CliServer {
 public:
  explicit CliServer(const std::string& name)
      : folder_(std::filesystem::path(::testing::TempDir()) /
                ("kvist-" + name + "-" + std::to_string(getpid()))) {
    std::filesystem::create_directories(models());
  }
  ~CliServer() {
    process_.reset();
    std::error_code error;
    std::filesystem::remove_all(folder_, error);
  }
  CliServer(const CliServer&) = delete;
  CliServer& operator=(const CliServer&) = delete;

  const std::filesystem::path& folder() const { return folder_; }
  // Where the names that kvist knows are looked for.
  std::filesystem::path models() const { return folder_ / "kvist" / "models"; }

  // Starts it on free ports with more `flags` and waits until it is ready.
  void Start(const std::vector<std::string>& flags) {
    std::vector<std::string> command = {KVIST_BINARY, "serve",       "--grpc",    "127.0.0.1:0",
                                        "--metrics",  "127.0.0.1:0", "--threads", "1"};
    command.insert(command.end(), flags.begin(), flags.end());
    process_ = std::make_unique<Subprocess>(
        command, std::vector<std::string>{"XDG_CACHE_HOME=" + folder_.string()});
    ready_ = process_->WaitForLine("kvist ready ", kCliPatienceSeconds);
    ASSERT_FALSE(ready_.empty()) << process_->errors();
  }
  // Ends it as a person would; it must then end well, having said nothing but that it is ready.
  void Stop() {
    process_->Kill(SIGTERM);
    EXPECT_EQ(process_->WaitForExit(kCliPatienceSeconds), 0) << process_->errors();
    EXPECT_EQ(std::count(process_->output().begin(), process_->output().end(), '\n'), 1)
        << "more than the ready line on stdout: " << process_->output();
  }

  const std::string& ready() const { return ready_; }
  std::string address() const { return ReadyValue(ready_, "grpc"); }

  // Of the clients.
  std::vector<std::string> Environment() const {
    return {"XDG_CACHE_HOME=" + folder_.string(), "XDG_STATE_HOME=" + (folder_ / "state").string(),
            "HOME=" + folder_.string(), "KVIST_ENDPOINT=" + address(), "TERM=dumb"};
  }
  CliResult Kvist(std::vector<std::string> arguments, const std::string& input = "") const {
    arguments.insert(arguments.begin(), KVIST_BINARY);
    Subprocess process(arguments, Environment(), input);
    CliResult result;
    result.exit_code = process.WaitForExit(kCliPatienceSeconds);
    result.output = process.output();
    result.errors = process.errors();
    return result;
  }
  // What `--output json` prints; the command must succeed.
  nlohmann::json Json(std::vector<std::string> arguments) const {
    arguments.insert(arguments.end(), {"--output", "json"});
    const CliResult result = Kvist(arguments);
    EXPECT_EQ(result.exit_code, 0) << result.errors;
    return nlohmann::json::parse(result.output, nullptr, /*allow_exceptions=*/false);
  }

 private:
  const std::filesystem::path folder_;
  std::unique_ptr<Subprocess> process_;
  std::string ready_;
};

}  // namespace kvist::testing

#endif  // KVIST_TESTS_SERVICES_CLI_CLI_SERVER_H_
