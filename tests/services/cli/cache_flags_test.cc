// The caches that a command may ask for, at a server of a short context.
#include <gtest/gtest.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/services/cli/cli_server.h"
#include "tests/support/chat_model.h"

namespace kvist::services {
namespace {

using nlohmann::json;
using Result = testing::CliResult;

constexpr int kContextTokens = 512;  // fewer than the window of a preset

class CacheFlagsTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    server_ = std::make_unique<testing::CliServer>("cache-flags");
    const std::string model = (server_->folder() / "tiny.gguf").string();
    ASSERT_TRUE(testing::WriteChatModel(model, kContextTokens));
    server_->Start({"--model", model, "--kv-memory", "16MB", "--kv-formats", "f16,q8"});
  }
  static void TearDownTestSuite() {
    server_->Stop();
    server_.reset();
  }
  static Result Kvist(const std::vector<std::string>& arguments, const std::string& input = "") {
    return server_->Kvist(arguments, input);
  }
  static json CacheOf(const std::string& session) {
    return server_->Json({"sessions", session})["cache"];
  }

  static std::unique_ptr<testing::CliServer> server_;
};
std::unique_ptr<testing::CliServer> CacheFlagsTest::server_;

TEST_F(CacheFlagsTest, ModelsTellsWhatThereIs) {
  const json models = server_->Json({"models"})["models"];
  ASSERT_EQ(models.size(), 1u);
  for (const char* name : {"name", "fingerprint", "architecture", "parameters", "chat_format"}) {
    EXPECT_TRUE(models[0].contains(name)) << models[0];
  }
  EXPECT_EQ(models[0]["context_tokens"], kContextTokens);
  EXPECT_EQ(models[0]["kv_formats"], json({"f16", "q8"}));
  EXPECT_EQ(models[0]["offload_tiers"], json::array());
  EXPECT_EQ(models[0]["block_tokens"], 16);
  EXPECT_EQ(models[0]["ready_workers"], 1);
  const Result text = Kvist({"models"});
  EXPECT_EQ(text.exit_code, 0) << text.errors;
  EXPECT_NE(text.output.find("f16,q8"), std::string::npos) << text.output;
}

TEST_F(CacheFlagsTest, CacheFlagsThatContradictEachOtherAreNamed) {
  const auto refused = [](std::vector<std::string> flags, const std::string& why) {
    flags.insert(flags.begin(), {"generate", "The"});
    const Result result = Kvist(flags);
    EXPECT_EQ(result.exit_code, 4) << result.errors;
    EXPECT_NE(result.errors.find(why), std::string::npos) << result.errors;
  };
  refused({"--kv-format", "q4"}, "these are: f16, q8");
  refused({"--cache", "sliding_window", "--window", "0"}, "error: --window: ");
  refused({"--window", "15"}, "error: --window: ");
  refused({"--window", "100000"}, "error: --window: ");
  refused({"--sinks", "4"}, "error: --sinks: ");
  EXPECT_EQ(Kvist({"generate", "The", "--cache", "elastic"}).exit_code, 2);
}

TEST_F(CacheFlagsTest, APresetsWindowIsNoWiderThanTheContext) {
  const Result lone = Kvist({"generate", "x", "--cache", "sliding_window"});
  EXPECT_EQ(lone.exit_code, 0) << lone.errors;
  EXPECT_EQ(Kvist({"sessions", "create", "made", "--cache", "sliding_window"}).exit_code, 0);
  EXPECT_EQ(CacheOf("made")["window_tokens"], kContextTokens);
  EXPECT_EQ(CacheOf("made")["sink_tokens"], 4);
  EXPECT_EQ(Kvist({"generate", "x", "--session", "made", "--max-new-tokens", "2"}).exit_code, 0);
  const Result chat = Kvist(
      {"chat", "--session", "said", "--cache", "sliding_window", "--max-new-tokens", "2"}, "hi\n");
  EXPECT_EQ(chat.exit_code, 0) << chat.errors;
  EXPECT_EQ(CacheOf("said")["window_tokens"], kContextTokens);
  // A number that was given is not cut in silence.
  const Result given = Kvist({"generate", "x", "--cache", "sliding_window", "--window", "1024"});
  EXPECT_EQ(given.exit_code, 4);
  EXPECT_NE(given.errors.find("error: --window:"), std::string::npos) << given.errors;
}

TEST_F(CacheFlagsTest, ATurnMayRefineItsSessionsWindow) {
  EXPECT_EQ(Kvist({"sessions", "create", "s", "--window", "64", "--sinks", "4"}).exit_code, 0);
  for (const std::vector<std::string>& flags : std::vector<std::vector<std::string>>{
           {"--sinks", "8"}, {"--window", "32"}, {"--window", "0"}}) {
    std::vector<std::string> command = {"generate", "x", "--session", "s", "--max-new-tokens", "2"};
    command.insert(command.end(), flags.begin(), flags.end());
    const Result result = Kvist(command);
    EXPECT_EQ(result.exit_code, 0) << flags[0] << " " << flags[1] << ": " << result.errors;
  }
  // As many sinks as the session's window has tokens.
  const Result wide = Kvist({"generate", "x", "--session", "s", "--sinks", "64"});
  EXPECT_EQ(wide.exit_code, 4);
  EXPECT_NE(wide.errors.find("error: --sinks:"), std::string::npos) << wide.errors;
  EXPECT_EQ(CacheOf("s")["window_tokens"], 64);
  EXPECT_EQ(CacheOf("s")["sink_tokens"], 4);
}

TEST_F(CacheFlagsTest, APriorityIsTakenUpToItsLimits) {
  for (const char* priority : {"-100", "100"}) {
    const Result result = Kvist({"generate", "x", "--priority", priority, "--max-new-tokens", "1"});
    EXPECT_EQ(result.exit_code, 0) << result.errors;
  }
  for (const std::vector<std::string>& command : std::vector<std::vector<std::string>>{
           {"generate", "x", "--priority", "101"}, {"chat", "--priority", "-101"}}) {
    const Result result = Kvist(command, "hi\n");
    EXPECT_EQ(result.exit_code, 4) << command[0];
    EXPECT_NE(result.errors.find("error: --priority:"), std::string::npos) << result.errors;
  }
}

TEST_F(CacheFlagsTest, ABenchTakesThePresetsNamesAndTellsWhatTheDiskIsWorth) {
  const json rows = server_->Json(
      {"bench", "kv-cache", "--model", (server_->folder() / "tiny.gguf").string(), "--threads", "1",
       "--runs", "1", "--new", "40", "--cache", "dynamic,offloaded,quantized"})["rows"];
  ASSERT_EQ(rows.size(), 3u);
  EXPECT_EQ(rows[0]["cache"], "dynamic");
  EXPECT_EQ(rows[2]["cache"], "quantized");
  EXPECT_LT(rows[2]["kv_bytes"], rows[0]["kv_bytes"]);
  EXPECT_FALSE(rows[0].contains("next_turn"));
  EXPECT_FALSE(rows[2].contains("next_turn"));
  const json& next = rows[1]["next_turn"];
  EXPECT_EQ(next["restores"], 1) << rows[1];  // nothing was measured yet
  EXPECT_GT(next["mean_s"], 0);
  EXPECT_GT(next["recomputed_mean_s"], 0);
  const Result text =
      Kvist({"bench", "kv-cache", "--model", (server_->folder() / "tiny.gguf").string(),
             "--threads", "1", "--runs", "1", "--new", "40", "--cache", "offloaded"});
  EXPECT_EQ(text.exit_code, 0) << text.errors;
  EXPECT_NE(text.output.find("the next turn, after eviction"), std::string::npos) << text.output;
}

}  // namespace
}  // namespace kvist::services
