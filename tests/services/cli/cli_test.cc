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

#include "tests/services/cli/cli_server.h"
#include "tests/support/chat_model.h"
#include "tests/support/model_files.h"
#include "tests/support/subprocess.h"

namespace kvist::services {
namespace {

using nlohmann::json;
using testing::ReadyValue;
using testing::Subprocess;

constexpr int kPatienceSeconds = testing::kCliPatienceSeconds;
using Result = testing::CliResult;
// More than the examples ask for.
constexpr uint32_t kContextTokens = 4096;

// A server of a tiny model, and a model folder in which the known names are tiny models.
class CliTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    server_ = std::make_unique<testing::CliServer>("cli");
    const std::filesystem::path tiny = server_->folder() / "tiny.gguf";
    ASSERT_TRUE(testing::WriteChatModel(tiny.string(), kContextTokens));
    for (const auto name : {testing::kSmolLm2File, testing::kGemma3File}) {
      std::filesystem::create_symlink(tiny, server_->models() / name);
    }
    server_->Start({"--model", "smollm2", "--kv-memory", "16MB"});
  }
  static void TearDownTestSuite() {
    server_->Stop();
    server_.reset();
  }

  static std::filesystem::path folder() { return server_->folder(); }
  static Result Kvist(const std::vector<std::string>& arguments, const std::string& input = "") {
    return server_->Kvist(arguments, input);
  }
  static json JsonOf(const std::vector<std::string>& arguments) { return server_->Json(arguments); }
  static void ExpectMembers(const json& object, const std::vector<std::string>& names) {
    ASSERT_TRUE(object.is_object()) << object;
    for (const std::string& name : names)
      EXPECT_TRUE(object.contains(name)) << name << " in " << object;
  }

  static std::unique_ptr<testing::CliServer> server_;
};
std::unique_ptr<testing::CliServer> CliTest::server_;

TEST_F(CliTest, ReadyLineNamesAddresses) {
  EXPECT_TRUE(server_->ready().starts_with("kvist ready grpc=127.0.0.1:")) << server_->ready();
  EXPECT_TRUE(ReadyValue(server_->ready(), "metrics").starts_with("127.0.0.1:"))
      << server_->ready();
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
  const json expected = JsonOf(command)["token_ids"];
  for (const auto& kind : std::vector<std::vector<std::string>>{
           {"none"}, {"dynamic"}, {"static"}, {"sliding_window", "--window", "100"}}) {
    std::vector<std::string> other = command;
    other.push_back("--cache");
    other.insert(other.end(), kind.begin(), kind.end());
    EXPECT_EQ(JsonOf(other)["token_ids"], expected) << kind[0];
  }
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
  const std::string logits = (folder() / "logits").string();
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

double NegativeLogprob(const json& score) {
  double sum = 0;
  for (const json& chunk : score["chunks"]) sum += chunk["negative_logprob"].get<double>();
  return sum;
}

TEST_F(CliTest, ScoreInPiecesIsTheScoreOfEachPiece) {
  const json first = JsonOf({"score", "--ids", "1,2,3,4", "--model", "smollm2"});
  const json second = JsonOf({"score", "--ids", "5,6", "--model", "smollm2"});
  const json both = JsonOf({"score", "--ids", "1,2,3,4,5,6", "--model", "smollm2", "--chunk", "4"});
  ASSERT_EQ(both["chunks"].size(), 2u);
  EXPECT_EQ(both["tokens"], 6);
  EXPECT_EQ(both["chunks"][0], first["chunks"][0]);
  EXPECT_EQ(both["chunks"][1], second["chunks"][0]);
  EXPECT_EQ(both["top"], second["top"]);
  EXPECT_NEAR(both["perplexity"].get<double>(), std::exp(NegativeLogprob(both) / 4), 1e-6);
  EXPECT_TRUE(JsonOf({"score", "--ids", "1", "--model", "smollm2"})["perplexity"].is_null());
}

TEST_F(CliTest, ScoreInQ8IsCloseToF16AndNotTheSame) {
  const std::vector<std::string> command = {"score", "--ids", "1,22,33,44,55,66,77", "--model",
                                            "smollm2"};
  std::vector<std::string> in_q8 = command;
  in_q8.insert(in_q8.end(), {"--kv-format", "q8"});
  const double f16 = NegativeLogprob(JsonOf(command));
  const double q8 = NegativeLogprob(JsonOf(in_q8));
  EXPECT_NE(q8, f16);
  EXPECT_NEAR(q8, f16, 0.01 * f16);
}

TEST_F(CliTest, QuantisedFormatsAreServedBesideTheDefault) {
  Subprocess server({KVIST_BINARY, "serve", "--model",
                     std::filesystem::absolute(testing::GoldenPath("tiny/llama_k.Q4_K.gguf")),
                     "--kv-formats", "f16,q8,q4", "--kv-memory", "32MB", "--grpc", "127.0.0.1:0",
                     "--metrics", "", "--threads", "1"},
                    server_->Environment());
  const std::string ready = server.WaitForLine("kvist ready ", kPatienceSeconds);
  ASSERT_FALSE(ready.empty()) << server.errors();
  for (const std::string format : {"f16", "q8", "q4"}) {
    const json result =
        JsonOf({"generate", "The red cat was", "--max-new-tokens", "4", "--ignore-eos",
                "--kv-format", format, "--endpoint", ReadyValue(ready, "grpc")});
    EXPECT_EQ(result["token_ids"].size(), 4u) << format;
  }
  const Result refused =
      Kvist({"generate", "The", "--kv-format", "bf16", "--endpoint", ReadyValue(ready, "grpc")});
  EXPECT_EQ(refused.exit_code, 4);
  EXPECT_NE(refused.errors.find("f16, q8, q4"), std::string::npos) << refused.errors;
  server.Kill(SIGTERM);
  EXPECT_EQ(server.WaitForExit(kPatienceSeconds), 0) << server.errors();
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
  ASSERT_EQ(result["rows"].size(), 8u);
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
  EXPECT_EQ(Kvist({"generate", "The red cat was", "--session", "kitchen", "--max-new-tokens", "20",
                   "--ignore-eos"})
                .exit_code,
            0);
  const json shown = JsonOf({"sessions", "kitchen"});
  EXPECT_EQ(shown["cache"]["allocation"], "");
  ExpectMembers(shown, {"session", "phase", "tokens", "blocks", "shared_bytes", "exclusive_bytes"});
  EXPECT_GT(shown["tokens"].get<int>(), 20);
  const json all = JsonOf({"sessions"});
  ASSERT_TRUE(all.contains("sessions"));
  EXPECT_TRUE(std::any_of(all["sessions"].begin(), all["sessions"].end(),
                          [](const json& row) { return row["session"] == "kitchen"; }));
  EXPECT_EQ(JsonOf({"sessions", "truncate", "kitchen", "--keep-last", "5"})["tokens"], 5);
  EXPECT_EQ(JsonOf({"sessions", "truncate", "kitchen", "--keep-first", "3"})["tokens"], 3);
  EXPECT_EQ(Kvist({"sessions", "truncate", "kitchen"}).exit_code, 2);
  EXPECT_EQ(JsonOf({"sessions", "reset", "kitchen"})["tokens"], 0);
  EXPECT_EQ(Kvist({"sessions", "delete", "kitchen"}).exit_code, 0);
  EXPECT_EQ(Kvist({"sessions", "delete", "kitchen"}).exit_code, 4);
}

TEST_F(CliTest, ASessionRemembersItsCache) {
  EXPECT_EQ(Kvist({"sessions", "create", "narrow", "--cache", "static", "--window", "64", "--sinks",
                   "4", "--kv-format", "f16"})
                .exit_code,
            0);
  const json cache = JsonOf({"sessions", "narrow"})["cache"];
  EXPECT_EQ(cache, json({{"allocation", "static"},
                         {"window_tokens", 64},
                         {"sink_tokens", 4},
                         {"kv_format", "f16"},
                         {"offload", ""}}));
  EXPECT_EQ(Kvist({"sessions", "delete", "narrow"}).exit_code, 0);
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

TEST_F(CliTest, BenchOfAWindowThatCannotBeIsRefusedBeforeItStarts) {
  const std::vector<std::string> bench = {"bench",   "kv-cache", "--model",
                                          "smollm2", "--cache",  "sliding_window"};
  const std::vector<std::vector<std::string>> rows = {
      {"--window", "0"}, {"--window", "8"}, {"--window", "1000000"}, {"--sinks", "300"}};
  for (const auto& flags : rows) {
    std::vector<std::string> command = bench;
    command.insert(command.end(), flags.begin(), flags.end());
    const Result result = Kvist(command);
    EXPECT_EQ(result.exit_code, 2) << result.errors;
    EXPECT_EQ(result.errors.rfind("kvist: error: " + flags[0] + ":", 0), 0u) << result.errors;
  }
}

struct ExitRow {
  std::vector<std::string> arguments;
  int exit_code;
  std::string says;
};

TEST_F(CliTest, ErrorsHaveTheirExitCodesAndSayWhatToDo) {
  const std::string small_heads = testing::GoldenPath("tiny/llama_a.Q4_1.gguf");  // of 16
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
      {{"generate", "x", "--temperature", "nan"}, 4, "error: --temperature:"},
      {{"generate", "x", "--max-new-tokens", "0"}, 4, "error: --max-new-tokens:"},
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
      {{"serve", "--model", "smollm2", "--kv-memory", "1KB", "--grpc", "127.0.0.1:0", "--metrics",
        ""},
       2,
       "error: --kv-memory:"},
      {{"worker", "--model", "smollm2", "--context", "1000000", "--grpc", "127.0.0.1:0"},
       2,
       "error: --context:"},
      {{"worker", "--model", "smollm2", "--threads", "1000", "--grpc", "127.0.0.1:0"},
       2,
       "error: --threads:"},
      {{"serve", "--model", "smollm2", "--speculative-tokens", "9"}, 2, "--speculative-tokens"},
      {{"worker", "--model", "smollm2", "--kv-formats", "q3", "--grpc", "127.0.0.1:0"},
       2,
       "kv-formats"},
      {{"worker", "--model", small_heads, "--kv-formats", "f16,q4", "--grpc", "127.0.0.1:0"},
       2,
       "q4 needs heads of a multiple of 32, this model's have 16"},
      {{"score", "--ids", "1,2", "--model", small_heads, "--kv-format", "q4"}, 2, "q4 needs"},
      {{"bench", "engine", "--model", small_heads, "--prompt", "32", "--new", "4", "--kv-format",
        "q4"},
       2,
       "q4 needs"},
      {{"generate", "x", "--kv-format", "q8"}, 4, "error: --kv-format:"},
      {{"score", "--ids", "1,2", "--model", "smollm2", "--chunk", "1"}, 2, "--chunk"},
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
  const Result result = Kvist({"cache-manager", "--grpc", server_->address(), "--metrics", ""});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_NE(result.errors.find("in use"), std::string::npos) << result.errors;
}

TEST_F(CliTest, CompletionIsBashThatKnowsTheCommands) {
  const Result script = Kvist({"completion", "bash"});
  EXPECT_EQ(script.exit_code, 0);
  const std::string file = (folder() / "completion.bash").string();
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

// Every command whose help has examples; the first is kvist itself.
const std::vector<std::vector<std::string>>& Commands() {
  static const auto* const kCommands =
      new std::vector<std::vector<std::string>>{{},
                                                {"serve"},
                                                {"frontend"},
                                                {"cache-manager"},
                                                {"worker"},
                                                {"generate"},
                                                {"chat"},
                                                {"sessions"},
                                                {"sessions", "create"},
                                                {"sessions", "get"},
                                                {"sessions", "reset"},
                                                {"sessions", "truncate"},
                                                {"sessions", "fork"},
                                                {"sessions", "export"},
                                                {"sessions", "import"},
                                                {"sessions", "delete"},
                                                {"blocks"},
                                                {"models"},
                                                {"tokenize"},
                                                {"score"},
                                                {"bench"},
                                                {"bench", "engine"},
                                                {"bench", "kv-cache"},
                                                {"doctor"},
                                                {"completion"},
                                                {"version"}};
  return *kCommands;
}

bool StartsAServer(const std::string& example) {
  for (const char* role : {"serve", "frontend", "cache-manager", "worker"}) {
    if (example.starts_with(std::string("kvist ") + role + " ")) return true;
  }
  return false;
}

TEST_F(CliTest, ExamplesOfEveryHelpRun) {
  // What they name: a text, a model, the folder of completions, a session.
  std::ofstream(folder() / "story.txt") << "once upon a time";
  std::filesystem::create_symlink(server_->models() / testing::kSmolLm2File, folder() / "m.gguf");
  std::filesystem::create_directories(folder() / ".local/share/bash-completion/completions");
  const std::string path = std::filesystem::path(KVIST_BINARY).parent_path().string();
  std::vector<std::string> environment = server_->Environment();
  // Of the servers: ports that are free, and no more memory than a test may take.
  for (const char* variable : {"KVIST_GRPC=127.0.0.1:0", "KVIST_METRICS=127.0.0.1:0",
                               "KVIST_THREADS=1", "KVIST_KV_MEMORY=16MB"}) {
    environment.emplace_back(variable);
  }
  for (std::vector<std::string> command : Commands()) {
    const bool makes_session =
        !command.empty() && (command.back() == "create" || command.back() == "import");
    command.emplace_back("--help");
    const Result help = Kvist(command);
    EXPECT_EQ(help.exit_code, 0) << command[0];
    const std::vector<std::string> examples = ExamplesOf(help.output);
    EXPECT_FALSE(examples.empty()) << command[0] << ": " << help.output;
    for (const std::string& example : examples) {
      Kvist({"sessions", "delete", "kitchen"});
      if (!makes_session && example.find("sessions create") == std::string::npos) {
        EXPECT_EQ(Kvist({"sessions", "create", "kitchen"}).exit_code, 0);
        EXPECT_EQ(Kvist({"generate", "x", "--session", "kitchen", "--max-new-tokens", "120",
                         "--ignore-eos"})
                      .exit_code,
                  0);
      }
      const std::string script = "cd " + folder().string() + " && PATH=" + path + ":$PATH && ";
      Subprocess bash({"bash", "-c", script + (StartsAServer(example) ? "exec " : "") + example},
                      environment);
      if (StartsAServer(example)) {
        EXPECT_NE(bash.WaitForLine("kvist ready ", kPatienceSeconds), "") << example;
        bash.Kill(SIGTERM);
      }
      EXPECT_EQ(bash.WaitForExit(kPatienceSeconds), 0) << example << ": " << bash.errors();
    }
  }
}

}  // namespace
}  // namespace kvist::services
