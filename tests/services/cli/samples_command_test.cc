// Several samples and forks of sessions on the command line.
#include <gtest/gtest.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "tests/services/cli/cli_server.h"
#include "tests/support/chat_model.h"
#include "tests/support/model_files.h"

namespace kvist::services {
namespace {

using nlohmann::json;
using Result = testing::CliResult;

class SamplesCommandTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    server_ = std::make_unique<testing::CliServer>("samples");
    ASSERT_TRUE(
        testing::WriteChatModel((server_->models() / testing::kSmolLm2File).string(), 1024));
    server_->Start({"--model", "smollm2", "--kv-memory", "16MB"});
  }
  static void TearDownTestSuite() {
    server_->Stop();
    server_.reset();
  }
  static Result Kvist(const std::vector<std::string>& arguments) {
    return server_->Kvist(arguments);
  }
  static json JsonOf(const std::vector<std::string>& arguments) { return server_->Json(arguments); }
  static std::vector<std::string> Command(const std::vector<std::string>& more) {
    std::vector<std::string> command = {
        "generate", "The red cat was", "--max-new-tokens", "12", "--temperature", "0.9", "--seed",
        "7",        "--ignore-eos"};
    command.insert(command.end(), more.begin(), more.end());
    return command;
  }

  static std::unique_ptr<testing::CliServer> server_;
};
std::unique_ptr<testing::CliServer> SamplesCommandTest::server_;

TEST_F(SamplesCommandTest, TheJsonHasEachAndItsOtherMembersAreOfTheFirst) {
  const json result = JsonOf(Command({"--samples", "3", "--logprobs", "1"}));
  ASSERT_EQ(result["samples"].size(), 3u);
  EXPECT_EQ(result["text"], result["samples"][0]["text"]);
  EXPECT_EQ(result["token_ids"], result["samples"][0]["token_ids"]);
  EXPECT_EQ(result["finish_reason"], "length");
  std::set<json> different;
  for (size_t i = 0; i < 3; ++i) {
    const json& sample = result["samples"][i];
    different.insert(sample["token_ids"]);
    EXPECT_EQ(sample["finish_reason"], "length");
    EXPECT_EQ(sample["token_ids"].size(), 12u);
    EXPECT_EQ(sample["logprobs"].size(), 12u);
    const json alone = JsonOf(Command({"--sample-index", std::to_string(i)}));
    EXPECT_EQ(alone["token_ids"], sample["token_ids"]) << i;
    EXPECT_EQ(alone["text"], sample["text"]) << i;
    EXPECT_FALSE(alone.contains("samples"));
  }
  EXPECT_EQ(different.size(), 3u);
  EXPECT_GE(result["samples"][2]["cached_tokens"], result["prompt_tokens"].get<int>() - 1);
}

TEST_F(SamplesCommandTest, OneSampleHasTheSameForm) {
  const json result = JsonOf(Command({"--samples", "1"}));
  ASSERT_EQ(result["samples"].size(), 1u);
  EXPECT_EQ(result["samples"][0]["token_ids"], result["token_ids"]);
  EXPECT_EQ(result["samples"][0]["finish_reason"], "length");
}

TEST_F(SamplesCommandTest, TextShowsOneAfterTheOther) {
  const Result result = Kvist(Command({"--samples", "2"}));
  EXPECT_EQ(result.exit_code, 0) << result.errors;
  const std::string first = JsonOf(Command({}))["text"];
  const std::string second = JsonOf(Command({"--sample-index", "1"}))["text"];
  EXPECT_EQ(result.output, first + "\n--- sample 1 ---\n" + second + "\n");
  EXPECT_NE(result.errors.find("24 new"), std::string::npos) << result.errors;
}

TEST_F(SamplesCommandTest, BadCountsAreNamed) {
  for (const char* count : {"0", "17", "-1"}) {
    const Result result = Kvist(Command({"--samples", count}));
    EXPECT_EQ(result.exit_code, 4) << count;
    EXPECT_NE(result.errors.find("samples"), std::string::npos) << result.errors;
  }
  EXPECT_EQ(Kvist({"sessions", "create", "one"}).exit_code, 0);
  const Result result = Kvist(Command({"--samples", "2", "--session", "one"}));
  EXPECT_EQ(result.exit_code, 4);
  EXPECT_NE(result.errors.find("in a session"), std::string::npos) << result.errors;
}

TEST_F(SamplesCommandTest, AForkSharesTheBlocksAndGoesItsOwnWay) {
  EXPECT_EQ(Kvist({"sessions", "create", "kitchen"}).exit_code, 0);
  EXPECT_EQ(JsonOf({"generate", "The red cat was", "--session", "kitchen", "--max-new-tokens", "60",
                    "--ignore-eos"})["finish_reason"],
            "length");
  const json fork = JsonOf({"sessions", "fork", "kitchen", "kitchen-2"});
  EXPECT_EQ(fork["session"], "kitchen-2");
  EXPECT_EQ(fork["version"], 1);
  const json kitchen = JsonOf({"sessions", "kitchen"});
  EXPECT_EQ(fork["tokens"], kitchen["tokens"]);
  const json shown = JsonOf({"sessions", "kitchen-2"});
  EXPECT_GT(shown["shared_bytes"], 0);
  EXPECT_EQ(shown["shared_bytes"], kitchen["shared_bytes"]);
  EXPECT_EQ(shown["exclusive_bytes"], 0);
  EXPECT_GT(JsonOf({"generate", " and", "--session", "kitchen-2", "--max-new-tokens",
                    "5"})["cached_tokens"],
            48);
  EXPECT_EQ(JsonOf({"sessions", "kitchen"})["tokens"], kitchen["tokens"]);
  EXPECT_EQ(Kvist({"sessions", "fork", "kitchen", "kitchen-2"}).exit_code, 4);
  EXPECT_EQ(Kvist({"sessions", "fork", "nobody"}).exit_code, 4);
  EXPECT_EQ(Kvist({"sessions", "fork"}).exit_code, 2);
  EXPECT_NE(JsonOf({"sessions", "fork", "kitchen"})["session"], "kitchen");
}

}  // namespace
}  // namespace kvist::services
