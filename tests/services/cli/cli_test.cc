// The command line as scripts use it: exit codes, JSON members, the examples of --help.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "tests/support/model_files.h"
#include "tests/support/subprocess.h"

namespace kvist::services {
namespace {

using nlohmann::json;
using testing::ReadyValue;
using testing::Subprocess;

constexpr int kPatienceSeconds = 60;

struct Result {
  int exit_code = -1;
  std::string output;
  std::string errors;
};

// A server of a tiny model, and a model folder in which the known names are tiny models.
class CliTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ =
        std::filesystem::path(::testing::TempDir()) / ("kvist-cli-" + std::to_string(getpid()));
    const auto models = folder_ / "kvist" / "models";
    std::filesystem::create_directories(models);
    const auto tiny = std::filesystem::absolute(testing::GoldenPath("tiny/llama_a.Q4_1.gguf"));
    for (const auto name : {testing::kSmolLm2File, testing::kGemma3File}) {
      std::filesystem::create_symlink(tiny, models / name);
    }
    server_ = std::make_unique<Subprocess>(
        std::vector<std::string>{KVIST_BINARY, "serve", "--model", "smollm2", "--kv-memory", "16MB",
                                 "--grpc", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--threads",
                                 "1", "--chat-template", "chatml"},
        std::vector<std::string>{"XDG_CACHE_HOME=" + folder_.string()});
    ready_ = server_->WaitForLine("kvist ready ", kPatienceSeconds);
    ASSERT_FALSE(ready_.empty()) << server_->errors();
  }
  static void TearDownTestSuite() {
    server_->Kill(SIGTERM);
    EXPECT_EQ(server_->WaitForExit(kPatienceSeconds), 0) << server_->errors();
    EXPECT_EQ(std::count(server_->output().begin(), server_->output().end(), '\n'), 1)
        << "more than the ready line on stdout: " << server_->output();
    server_.reset();
    std::error_code error;
    std::filesystem::remove_all(folder_, error);
  }

  static std::vector<std::string> Environment() {
    return {"XDG_CACHE_HOME=" + folder_.string(), "XDG_STATE_HOME=" + (folder_ / "state").string(),
            "HOME=" + folder_.string(), "KVIST_ENDPOINT=" + ReadyValue(ready_, "grpc")};
  }
  static Result Kvist(std::vector<std::string> arguments, const std::string& input = "") {
    arguments.insert(arguments.begin(), KVIST_BINARY);
    Subprocess process(arguments, Environment(), input);
    Result result;
    result.exit_code = process.WaitForExit(kPatienceSeconds);
    result.output = process.output();
    result.errors = process.errors();
    return result;
  }
  static json JsonOf(std::vector<std::string> arguments) {
    arguments.insert(arguments.end(), {"--output", "json"});
    const Result result = Kvist(arguments);
    EXPECT_EQ(result.exit_code, 0) << result.errors;
    return json::parse(result.output, nullptr, /*allow_exceptions=*/false);
  }
  static void ExpectMembers(const json& object, const std::vector<std::string>& names) {
    ASSERT_TRUE(object.is_object()) << object;
    for (const std::string& name : names)
      EXPECT_TRUE(object.contains(name)) << name << " in " << object;
  }

  static std::filesystem::path folder_;
  static std::unique_ptr<Subprocess> server_;
  static std::string ready_;
};
std::filesystem::path CliTest::folder_;
std::unique_ptr<Subprocess> CliTest::server_;
std::string CliTest::ready_;

TEST_F(CliTest, ReadyLineNamesAddresses) {
  EXPECT_TRUE(ready_.starts_with("kvist ready grpc=127.0.0.1:")) << ready_;
  EXPECT_TRUE(ReadyValue(ready_, "metrics").starts_with("127.0.0.1:")) << ready_;
}

TEST_F(CliTest, GenerateHasTheMembersOfTheContract) {
  const json result =
      JsonOf({"generate", "The red cat was", "--max-new-tokens", "8", "--ignore-eos"});
  ExpectMembers(result, {"text", "token_ids", "finish_reason", "prompt_tokens", "cached_tokens",
                         "timings", "worker", "session"});
  ExpectMembers(result["timings"], {"time_to_first_token_ms", "prefill_tokens_per_second",
                                    "decode_tokens_per_second"});
  EXPECT_EQ(result["token_ids"].size(), 8u);
  EXPECT_EQ(result["finish_reason"], "length");
}

TEST_F(CliTest, CacheKindDoesNotChangeTheTokens) {
  const std::vector<std::string> command = {"generate", "The red cat was", "--max-new-tokens",
                                            "20"};
  std::vector<std::string> without = command;
  without.insert(without.end(), {"--cache", "none"});
  EXPECT_EQ(JsonOf(command)["token_ids"], JsonOf(without)["token_ids"]);
}

TEST_F(CliTest, GenerateReadsStandardInputAndStreamsText) {
  const Result result = Kvist({"generate", "-", "--max-new-tokens", "5"}, "The red cat");
  EXPECT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_NE(result.errors.find("prompt tokens"), std::string::npos) << result.errors;
}

TEST_F(CliTest, LogprobsAreInTheJson) {
  const json result =
      JsonOf({"generate", "The", "--max-new-tokens", "3", "--logprobs", "2", "--ignore-eos"});
  ASSERT_EQ(result["logprobs"].size(), 3u);
  EXPECT_EQ(result["logprobs"][0]["top"].size(), 2u);
  EXPECT_EQ(result["logprobs"][0]["top"][0]["id"], result["logprobs"][0]["id"]);  // greedy
}

TEST_F(CliTest, TokenizeHasTheMembersOfTheContract) {
  const json result = JsonOf({"tokenize", "hello", "--model", "smollm2"});
  ExpectMembers(result, {"token_ids", "pieces"});
  EXPECT_EQ(result["token_ids"].size(), result["pieces"].size());
}

TEST_F(CliTest, ScoreHasTheMembersOfTheContractAndWritesLogits) {
  const std::string logits = (folder_ / "logits").string();
  const json result = JsonOf(
      {"score", "--ids", "1,2,3,4", "--model", "smollm2", "--top", "5", "--logits-out", logits});
  ExpectMembers(result, {"top", "tokens", "perplexity"});
  EXPECT_EQ(result["tokens"], 4);
  ASSERT_EQ(result["top"].size(), 5u);
  ExpectMembers(result["top"][0], {"id", "piece", "logprob"});
  ASSERT_EQ(std::filesystem::file_size(logits), 4u * 300 * sizeof(float));
  std::ifstream file(logits, std::ios::binary);
  std::vector<float> rows(4 * 300);
  file.read(reinterpret_cast<char*>(rows.data()),
            static_cast<std::streamsize>(rows.size() * sizeof(float)));
  // The written rows say the same as the JSON.
  const float* last = rows.data() + 3 * 300;
  EXPECT_EQ(std::max_element(last, last + 300) - last, result["top"][0]["id"].get<int>());
  double negative = 0;
  for (int i = 0; i < 3; ++i) {
    double sum = 0;
    for (int v = 0; v < 300; ++v) sum += std::exp(rows[i * 300 + v]);
    negative += std::log(sum) - rows[i * 300 + i + 2];
  }
  EXPECT_NEAR(result["perplexity"].get<double>(), std::exp(negative / 3),
              1e-3 * std::exp(negative / 3));
}

TEST_F(CliTest, BenchEngineHasTheMembersOfTheContract) {
  const json result =
      JsonOf({"bench", "engine", "--model", "smollm2", "--threads", "1", "--prompt", "32", "--new",
              "4", "--batch", "2", "--depth", "16", "--rounds", "2"});
  ExpectMembers(
      result, {"prefill_tokens_per_second", "decode_tokens_per_second", "limit", "cpu", "kernels"});
  ExpectMembers(result["limit"], {"memory_bandwidth_bytes_per_second", "int8_macs_per_second",
                                  "decode_share_of_bandwidth", "prefill_share_of_int8_peak"});
  EXPECT_GT(result["decode_tokens_per_second"].get<double>(), 0);
  EXPECT_LE(result["prefill"]["min"].get<double>(), result["prefill"]["max"].get<double>());
}

TEST_F(CliTest, BenchKvCacheHasTheMembersOfTheContract) {
  const json result = JsonOf({"bench", "kv-cache", "--model", "smollm2", "--threads", "1", "--runs",
                              "2", "--new", "1,20"});
  ExpectMembers(result, {"rows", "cpu", "kernels", "threads", "prompt"});
  ASSERT_EQ(result["rows"].size(), 6u);
  for (const json& row : result["rows"]) {
    ExpectMembers(row, {"cache", "new_tokens", "mean_s", "std_s", "kv_bytes", "peak_bytes"});
    EXPECT_EQ(row["runs"], 2) << row;
    EXPECT_GT(row["mean_s"].get<double>(), 0) << row;
    EXPECT_GE(row["peak_bytes"].get<int64_t>(), row["kv_bytes"].get<int64_t>()) << row;
  }
  const Result text = Kvist({"bench", "kv-cache", "--model", "smollm2", "--threads", "1", "--runs",
                             "2", "--new", "1,20", "--budget-seconds", "0.000001"});
  EXPECT_EQ(text.exit_code, 0) << text.errors;
  EXPECT_NE(text.output.find("1 *"), std::string::npos) << text.output;
  EXPECT_NE(text.output.find("|#"), std::string::npos) << text.output;
  EXPECT_NE(text.errors.find("run 1 of 2"), std::string::npos) << text.errors;
}

TEST_F(CliTest, DoctorHasTheFactsOfItsTable) {
  const json machine = JsonOf({"doctor", "--threads", "1"});
  ExpectMembers(machine, {"cpu", "instruction_sets", "kernels", "kernels_reason", "threads",
                          "cores", "memory", "limit", "warnings"});
  EXPECT_FALSE(machine.contains("model"));
  EXPECT_GT(machine["limit"]["memory_bandwidth_bytes_per_second"].get<double>(), 0);
  const json model = JsonOf({"doctor", "--model", "smollm2", "--threads", "1"})["model"];
  ExpectMembers(model, {"weight_bytes", "kv_memory_bytes", "formats",
                        "decode_limit_tokens_per_second", "context_tokens"});
  ExpectMembers(model["formats"][0], {"format", "kv_bytes_per_token", "tokens", "sessions"});
  const Result text = Kvist({"doctor", "--model", "smollm2", "--threads", "1"});
  EXPECT_EQ(text.exit_code, 0) << text.errors;
  EXPECT_NE(text.output.find("sessions of 1024"), std::string::npos) << text.output;
}

TEST_F(CliTest, SessionsAreMadeShownAndErased) {
  EXPECT_EQ(JsonOf({"sessions", "create", "kitchen"})["session"], "kitchen");
  EXPECT_EQ(Kvist({"sessions", "create", "kitchen"}).exit_code, 4);
  EXPECT_EQ(Kvist({"generate", "The red cat was", "--session", "kitchen", "--max-new-tokens", "20"})
                .exit_code,
            0);
  const json shown = JsonOf({"sessions", "kitchen"});
  ExpectMembers(shown, {"session", "phase", "tokens", "blocks", "shared_bytes", "exclusive_bytes"});
  EXPECT_GT(shown["tokens"].get<int>(), 20);
  const json all = JsonOf({"sessions"});
  ASSERT_TRUE(all.contains("sessions"));
  EXPECT_TRUE(std::any_of(all["sessions"].begin(), all["sessions"].end(),
                          [](const json& row) { return row["session"] == "kitchen"; }));
  EXPECT_EQ(JsonOf({"sessions", "truncate", "kitchen", "--keep-tokens", "3"})["tokens"], 3);
  EXPECT_EQ(JsonOf({"sessions", "reset", "kitchen"})["tokens"], 0);
  EXPECT_EQ(Kvist({"sessions", "delete", "kitchen"}).exit_code, 0);
  EXPECT_EQ(Kvist({"sessions", "delete", "kitchen"}).exit_code, 4);
}

TEST_F(CliTest, BlocksShowsWorkersAndTheirBlocks) {
  EXPECT_EQ(Kvist({"generate", "one two three four five six seven eight", "--max-new-tokens", "20"})
                .exit_code,
            0);
  const json all = JsonOf({"blocks"});
  ExpectMembers(all, {"workers", "blocks", "bytes", "shared_bytes", "evictions_by_cause"});
  ASSERT_EQ(all["workers"].size(), 1u);
  EXPECT_EQ(all["workers"][0]["worker"], "worker-1");
  const json one = JsonOf({"blocks", "worker-1"});
  ExpectMembers(one, {"worker", "blocks"});
  EXPECT_EQ(Kvist({"blocks", "nobody"}).exit_code, 4);
}

TEST_F(CliTest, ChatReadsAPipeAndRemembers) {
  const Result result = Kvist({"chat", "--session", "pipe", "--max-new-tokens", "4", "--seed", "1"},
                              "/help\n/reset\n/exit\nnever\n");
  EXPECT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_NE(result.errors.find("kvist chat --session pipe"), std::string::npos);
}

struct ExitRow {
  std::vector<std::string> arguments;
  int exit_code;
  std::string says;
};

TEST_F(CliTest, ErrorsHaveTheirExitCodesAndSayWhatToDo) {
  const std::vector<ExitRow> rows = {
      {{}, 2, "subcommand"},
      {{"fly"}, 2, "fly"},
      {{"generate"}, 2, "prompt"},
      {{"generate", "x", "--temperature", "hot"}, 2, "--temperature"},
      {{"generate", "x", "--cache", "big"}, 2, "--cache"},
      {{"generate", "x", "--output", "xml"}, 2, "--output"},
      {{"generate", "x", "--endpoint", "nonsense"}, 2, "--endpoint"},
      {{"generate", "x", "--endpoint", "127.0.0.1:1"}, 3, "kvist serve"},
      {{"sessions", "--endpoint", "127.0.0.1:1"}, 3, "kvist serve"},
      {{"generate", ""}, 4, "prompt.text"},
      {{"generate", "x", "--temperature", "nan"}, 4, "sampling.temperature"},
      {{"generate", "x", "--max-new-tokens", "0"}, 4, "stop.max_new_tokens"},
      {{"generate", "x", "--session", "unknown"}, 4, "unknown"},
      {{"generate", std::string(10'000, 'x')}, 4, "context"},
      {{"tokenize", "x", "--model", "/does/not/exist.gguf"}, 2, "/does/not/exist.gguf"},
      {{"tokenize", "x", "--model", "tests/golden/README.md"}, 2, "README.md"},
      {{"tokenize", "--model", "smollm2"}, 2, "text"},
      {{"score", "--ids", "1,999", "--model", "smollm2"}, 2, "999"},
      {{"score", "--ids", "1", "--model", "smollm2", "--kernels", "quantum"}, 2, "kernels"},
      {{"bench", "kv-cache", "--model", "smollm2", "--new", "0"}, 2, "--new"},
      {{"bench", "kv-cache", "--model", "smollm2", "--new", "5000"}, 2, "--new"},
      {{"bench", "kv-cache", "--model", "smollm2", "--cache", "big"}, 2, "--cache"},
      {{"doctor", "--model", "/does/not/exist.gguf"}, 2, "exist"},
      {{"serve", "--model", "/does/not/exist.gguf", "--grpc", "127.0.0.1:0", "--metrics", ""},
       2,
       "exist"},
      {{"serve", "--model", "smollm2", "--grpc", "0.0.0.0:0", "--metrics", ""}, 2, "insecure"},
      {{"worker", "--model", "smollm2", "--kv-formats", "q3", "--grpc", "127.0.0.1:0"},
       2,
       "kv-formats"},
      {{"--log-level", "loud", "version"}, 2, "log-level"},
  };
  for (const ExitRow& row : rows) {
    const Result result = Kvist(row.arguments);
    const std::string name =
        row.arguments.empty() ? "" : row.arguments[0] + " " + row.arguments.back();
    EXPECT_EQ(result.exit_code, row.exit_code) << name << ": " << result.errors;
    EXPECT_NE(result.errors.find(row.says), std::string::npos) << name << ": " << result.errors;
    EXPECT_EQ(result.output.find('{'), std::string::npos) << name << ": " << result.output;
  }
}

TEST_F(CliTest, PortInUseIsNamed) {
  const Result result =
      Kvist({"cache-manager", "--grpc", ReadyValue(ready_, "grpc"), "--metrics", ""});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_NE(result.errors.find("in use"), std::string::npos) << result.errors;
}

TEST_F(CliTest, CompletionIsBashThatKnowsTheCommands) {
  const Result script = Kvist({"completion", "bash"});
  EXPECT_EQ(script.exit_code, 0);
  const std::string file = (folder_ / "completion.bash").string();
  std::ofstream(file) << script.output;
  const std::string ask =
      "source " + file +
      "; COMP_WORDS=(kvist sessions de); COMP_CWORD=2; _kvist; echo ${COMPREPLY[@]};"
      " COMP_WORDS=(kvist generate --max); COMP_CWORD=2; _kvist; echo ${COMPREPLY[@]}";
  Subprocess bash({"bash", "-euc", ask});
  EXPECT_EQ(bash.WaitForExit(kPatienceSeconds), 0) << bash.errors();
  EXPECT_EQ(bash.output(), "delete\n--max-new-tokens\n");
}

// The lines below "Examples:" of a help text that are commands.
std::vector<std::string> ExamplesOf(const std::string& help) {
  std::vector<std::string> examples;
  std::istringstream lines(help.substr(std::min(help.find("Examples:"), help.size())));
  std::string line;
  while (std::getline(lines, line)) {
    if (line.starts_with("  ") && line.find("kvist ") != std::string::npos)
      examples.push_back(line.substr(2));
  }
  return examples;
}

TEST_F(CliTest, ExamplesOfEveryHelpRun) {
  const std::vector<std::vector<std::string>> commands = {{"generate"},
                                                          {"sessions"},
                                                          {"sessions", "create"},
                                                          {"sessions", "get"},
                                                          {"sessions", "reset"},
                                                          {"sessions", "truncate"},
                                                          {"sessions", "delete"},
                                                          {"blocks"},
                                                          {"tokenize"},
                                                          {"score"},
                                                          {"bench", "kv-cache"},
                                                          {"doctor"},
                                                          {"version"}};
  EXPECT_EQ(Kvist({"sessions", "create", "kitchen2"}).exit_code, 0);
  std::ofstream(folder_ / "story.txt") << "once";
  const std::string path = std::filesystem::path(KVIST_BINARY).parent_path().string();
  for (std::vector<std::string> command : commands) {
    command.emplace_back("--help");
    const Result help = Kvist(command);
    EXPECT_EQ(help.exit_code, 0) << command[0];
    const std::vector<std::string> examples = ExamplesOf(help.output);
    EXPECT_FALSE(examples.empty()) << command[0] << ": " << help.output;
    for (const std::string& example : examples) {
      // The tiny model has no chat tokens: that example may be refused, but must be understood.
      Subprocess bash(
          {"bash", "-c", "cd " + folder_.string() + " && PATH=" + path + ":$PATH && " + example},
          Environment());
      const int code = bash.WaitForExit(kPatienceSeconds);
      EXPECT_TRUE(code == 0 || code == 4) << example << ": " << code << ": " << bash.errors();
    }
  }
}

TEST_F(CliTest, EveryCommandHasHelpWithExamples) {
  for (const char* command :
       {"serve", "frontend", "cache-manager", "worker", "generate", "chat", "sessions", "blocks",
        "tokenize", "score", "bench", "doctor", "completion", "version"}) {
    const Result help = Kvist({command, "--help"});
    EXPECT_EQ(help.exit_code, 0) << command;
    EXPECT_FALSE(ExamplesOf(help.output).empty()) << command;
  }
}

}  // namespace
}  // namespace kvist::services
