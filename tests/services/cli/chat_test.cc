// kvist chat at a pipe and at a terminal, and what Ctrl-C and the end of time do to an answer.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <regex>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "tests/services/cli/cli_server.h"
#include "tests/support/chat_model.h"
#include "tests/support/subprocess.h"
#include "tests/support/terminal.h"

namespace kvist::services {
namespace {

using nlohmann::json;
using testing::CliResult;
using testing::Subprocess;
using testing::Terminal;

constexpr int kPatienceSeconds = testing::kCliPatienceSeconds;
constexpr uint32_t kContextTokens = 30'000;
// More tokens than the model computes while a test takes notice of the first of them, and more
// bytes of answer than a terminal adds to what is typed.
constexpr char kEndlessTokens[] = "25000";
constexpr size_t kSomeAnswerBytes = 600;

class ChatTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    server_ = std::make_unique<testing::CliServer>("chat");
    const std::string model = (server_->folder() / "chat.gguf").string();
    ASSERT_TRUE(testing::WriteChatModel(model, kContextTokens));
    server_->Start(
        {"--model", model, "--kv-memory", "64MB", "--context", std::to_string(kContextTokens)});
  }
  static void TearDownTestSuite() {
    server_->Stop();
    server_.reset();
  }

  static std::vector<std::string> Endless(std::vector<std::string> command) {
    command.insert(command.end(), {"--max-new-tokens", kEndlessTokens, "--ignore-eos"});
    return command;
  }
  static std::unique_ptr<Terminal> ChatAtATerminal(const std::string& session) {
    return std::make_unique<Terminal>(
        Endless({KVIST_BINARY, "chat", "--session", session, "--seed", "1"}),
        server_->Environment());
  }
  // `kvist generate` that will not end by itself, from when its first text came.
  static std::unique_ptr<Subprocess> EndlessGenerate(const std::vector<std::string>& flags) {
    std::vector<std::string> command = Endless({KVIST_BINARY, "generate", "The red cat was"});
    command.insert(command.end(), flags.begin(), flags.end());
    auto process = std::make_unique<Subprocess>(command, server_->Environment());
    EXPECT_TRUE(process->WaitForBytes(kSomeAnswerBytes, kPatienceSeconds)) << process->errors();
    return process;
  }
  static json ParsedOutput(const std::string& output) {
    return json::parse(output, nullptr, /*allow_exceptions=*/false);
  }

  static std::unique_ptr<testing::CliServer> server_;
};
std::unique_ptr<testing::CliServer> ChatTest::server_;

// "[31 tokens, 16 of them cached; 8 new at ..." of each turn.
struct TurnLine {
  int prompt = 0, cached = 0, generated = 0;
};
std::vector<TurnLine> TurnLines(const std::string& errors) {
  static const std::regex kLine(R"(\[(\d+) tokens, (\d+) of them cached; (\d+) new)");
  std::vector<TurnLine> turns;
  for (std::sregex_iterator row(errors.begin(), errors.end(), kLine), end; row != end; ++row) {
    turns.push_back({std::stoi((*row)[1]), std::stoi((*row)[2]), std::stoi((*row)[3])});
  }
  return turns;
}

TEST_F(ChatTest, PipeIsAConversationWhoseSecondTurnIsCached) {
  const CliResult result =
      server_->Kvist({"chat", "--session", "pipe", "--max-new-tokens", "40", "--ignore-eos"},
                     "/help\nMy name is Ida.\n\nWhat is my name?\n/exit\nnever\n");
  EXPECT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_NE(result.errors.find("kvist chat --session pipe"), std::string::npos);
  EXPECT_FALSE(result.output.empty());
  const std::vector<TurnLine> turns = TurnLines(result.errors);
  ASSERT_EQ(turns.size(), 2u) << result.errors;
  EXPECT_EQ(turns[0].generated, 40);
  EXPECT_GT(turns[1].prompt, turns[0].prompt + 40);  // the first turn and its answer are in it
  // All of the first turn but a last block that is not full.
  EXPECT_GE(turns[1].cached, turns[0].prompt + 40 - 16);
  EXPECT_LT(turns[1].cached, turns[1].prompt);
  const json session = server_->Json({"sessions", "pipe"});
  EXPECT_EQ(session["tokens"], turns[1].prompt + 40);
}

TEST_F(ChatTest, CacheAskedForIsTheSessions) {
  const CliResult result =
      server_->Kvist({"chat", "--session", "narrow", "--window", "32", "--sinks", "2",
                      "--max-new-tokens", "40", "--ignore-eos"},
                     "My name is Ida.\n");
  EXPECT_EQ(result.exit_code, 0) << result.errors;
  const json session = server_->Json({"sessions", "narrow"});
  EXPECT_EQ(session["cache"]["window_tokens"], 32);
  EXPECT_EQ(session["cache"]["sink_tokens"], 2);
  // Exporting looks for the blocks of the session's own cache.
  const std::string file = (server_->folder() / "narrow.kvist").string();
  const CliResult exported = server_->Kvist({"sessions", "export", "narrow", file});
  EXPECT_EQ(exported.exit_code, 0) << exported.errors;
  EXPECT_EQ(exported.errors.find("no worker has blocks"), std::string::npos) << exported.errors;
}

TEST_F(ChatTest, SystemMessageIsSaidOnceAndResetForgets) {
  const auto tokens = [](const std::string& input, const std::vector<std::string>& flags) {
    std::vector<std::string> command = {"chat", "--max-new-tokens", "4", "--ignore-eos"};
    command.insert(command.end(), flags.begin(), flags.end());
    const CliResult result = server_->Kvist(command, input);
    EXPECT_EQ(result.exit_code, 0) << result.errors;
    return TurnLines(result.errors);
  };
  const auto plain = tokens("one\ntwo\n", {});
  const auto system = tokens("one\ntwo\n/reset\none\n", {"--system", "You are short."});
  ASSERT_EQ(plain.size(), 2u);
  ASSERT_EQ(system.size(), 3u);
  const int said = system[0].prompt - plain[0].prompt;
  EXPECT_GT(said, 0);
  EXPECT_EQ(system[1].prompt - plain[1].prompt, said);
  EXPECT_EQ(system[2].prompt, system[0].prompt);
}

TEST_F(ChatTest, RefusalOfATurnEndsAPipeWithItsCode) {
  const CliResult result =
      server_->Kvist({"chat", "--temperature", "-1"}, "never answered\nnever read\n");
  EXPECT_EQ(result.exit_code, 4);
  EXPECT_NE(result.errors.find("--temperature:"), std::string::npos) << result.errors;
}

TEST_F(ChatTest, CtrlCCancelsTheAnswerAndKeepsTheChat) {
  const auto chat = ChatAtATerminal("ctrl-c");
  ASSERT_TRUE(chat->WaitFor("Session ctrl-c", kPatienceSeconds)) << chat->output();
  for (int turn = 0; turn < 3; ++turn) {  // at once after the first, too
    chat->Type("Tell me all.\n");
    ASSERT_TRUE(chat->WaitForBytes(kSomeAnswerBytes, kPatienceSeconds)) << chat->output();
    chat->Type(std::string(1, Terminal::kCtrlC));
    ASSERT_TRUE(
        chat->WaitFor("(cancelled; what was said so far stays in the session)", kPatienceSeconds))
        << chat->output();
  }
  chat->Type("/exit\n");
  EXPECT_EQ(chat->WaitForExit(kPatienceSeconds), 0) << chat->output();
  EXPECT_EQ(chat->output().find("error"), std::string::npos) << chat->output();
  EXPECT_NE(chat->output().find("To go on: kvist chat --session ctrl-c"), std::string::npos);
  // Three questions and three partial answers.
  EXPECT_GT(server_->Json({"sessions", "ctrl-c"})["tokens"], 100);
}

TEST_F(ChatTest, CtrlCAtThePromptSaysHowToLeave) {
  const auto chat = ChatAtATerminal("leave");
  ASSERT_TRUE(chat->WaitFor("Session leave", kPatienceSeconds)) << chat->output();
  ASSERT_TRUE(chat->WaitFor("> ", kPatienceSeconds)) << chat->output();
  chat->Type(std::string(1, Terminal::kCtrlC));
  EXPECT_TRUE(chat->WaitFor("/exit or Ctrl-D leaves", kPatienceSeconds)) << chat->output();
  // Typed between the prompt and the editor's taking of the terminal, a Ctrl-D is a character of
  // the line, which Ctrl-U takes away again.
  int exit_code = -1;
  for (int tries = 0; tries < kPatienceSeconds && exit_code == -1; ++tries) {
    chat->Type(std::string{Terminal::kCtrlU, Terminal::kCtrlD});
    exit_code = chat->WaitForExit(1);
  }
  EXPECT_EQ(exit_code, 0) << chat->output();
}

TEST_F(ChatTest, ErrorAfterACancelledAnswerIsTold) {
  const auto chat = ChatAtATerminal("gone");
  ASSERT_TRUE(chat->WaitFor("Session gone", kPatienceSeconds)) << chat->output();
  chat->Type("Tell me all.\n");
  ASSERT_TRUE(chat->WaitForBytes(kSomeAnswerBytes, kPatienceSeconds)) << chat->output();
  chat->Type(std::string(1, Terminal::kCtrlC));
  ASSERT_TRUE(chat->WaitFor("(cancelled", kPatienceSeconds)) << chat->output();
  EXPECT_EQ(server_->Kvist({"sessions", "delete", "gone"}).exit_code, 0);
  chat->Type("/reset\n");
  EXPECT_TRUE(chat->WaitFor("kvist: error: ", kPatienceSeconds)) << chat->output();
  chat->Type("/exit\n");
  EXPECT_EQ(chat->WaitForExit(kPatienceSeconds), 0) << chat->output();
}

TEST_F(ChatTest, InterruptEndsGenerateAfterThePartialAnswer) {
  const auto generate = EndlessGenerate({});
  generate->Kill(SIGINT);
  EXPECT_EQ(generate->WaitForExit(kPatienceSeconds), 130) << generate->errors();
  EXPECT_GE(generate->output().size(), kSomeAnswerBytes);
  EXPECT_EQ(generate->output().back(), '\n');
}

TEST_F(ChatTest, InterruptedGenerateStillPrintsItsObject) {
  const auto generate = EndlessGenerate({"--output", "json"});
  generate->Kill(SIGINT);
  EXPECT_EQ(generate->WaitForExit(kPatienceSeconds), 130) << generate->errors();
  const json result = ParsedOutput(generate->output());
  ASSERT_TRUE(result.is_object()) << generate->output();
  EXPECT_EQ(result["finish_reason"], "cancelled");
  EXPECT_GT(result["token_ids"].size(), 0u);
  EXPECT_FALSE(result["text"].get<std::string>().empty());
  EXPECT_GT(result["prompt_tokens"], 0);
}

TEST_F(ChatTest, TimeoutEndsGenerateWithThePartialAnswerAndItsCode) {
  const std::vector<std::string> command =
      Endless({"generate", "The red cat was", "--timeout-ms", "3000"});
  const CliResult text = server_->Kvist(command);
  EXPECT_EQ(text.exit_code, 5) << text.errors;
  EXPECT_FALSE(text.output.empty());
  std::vector<std::string> as_json = command;
  as_json.insert(as_json.end(), {"--output", "json"});
  const CliResult object = server_->Kvist(as_json);
  EXPECT_EQ(object.exit_code, 5) << object.errors;
  const json result = ParsedOutput(object.output);
  ASSERT_TRUE(result.is_object()) << object.output;
  EXPECT_EQ(result["finish_reason"], "deadline");
  EXPECT_GT(result["token_ids"].size(), 0u);
}

// Whether the process has taken SIGINT from the system, to look at it itself.
bool HoldsInterrupts(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/status");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("SigBlk:")) {
      return (std::stoull(line.substr(7), nullptr, 16) >> (SIGINT - 1) & 1) != 0;
    }
  }
  return false;
}

TEST_F(ChatTest, InterruptEndsAServerThatStillLoads) {
  // Opening a pipe that nobody writes to takes for ever, as a model on a dead network disk does.
  const std::string pipe = (server_->folder() / "never.gguf").string();
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  for (const char* role : {"serve", "worker"}) {
    Subprocess process({KVIST_BINARY, role, "--model", pipe, "--grpc", "127.0.0.1:0", "--metrics",
                        "", "--kv-memory", "1MB"});
    while (process.running() && !HoldsInterrupts(process.pid())) std::this_thread::yield();
    process.Kill(SIGINT);
    EXPECT_EQ(process.WaitForExit(kPatienceSeconds), 130) << role << ": " << process.errors();
  }
}

TEST_F(ChatTest, InterruptEndsGenerateThatWaitsForInput) {
  const std::string pipe = (server_->folder() / "input").string();
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  const std::string kvist = KVIST_BINARY;
  Subprocess generate({"bash", "-c", "exec " + kvist + " generate - <" + pipe},
                      server_->Environment());
  const int input = open(pipe.c_str(), O_WRONLY | O_CLOEXEC);
  ASSERT_GE(input, 0);
  // More than a pipe holds: once it is written, the program has begun to read.
  const std::string text(256 << 10, 'x');
  for (size_t done = 0; done < text.size();) {
    const ssize_t count = write(input, text.data() + done, text.size() - done);
    ASSERT_GT(count, 0);
    done += static_cast<size_t>(count);
  }
  generate.Kill(SIGINT);
  EXPECT_EQ(generate.WaitForExit(kPatienceSeconds), 130) << generate.errors();
  close(input);
}

TEST_F(ChatTest, InputWithoutAnEndIsRefused) {
  const std::string kvist = KVIST_BINARY;
  Subprocess bash({"bash", "-c", kvist + " generate - </dev/zero"}, server_->Environment());
  EXPECT_EQ(bash.WaitForExit(kPatienceSeconds), 2) << bash.errors();
  EXPECT_NE(bash.errors().find("more than 64 MiB"), std::string::npos) << bash.errors();
}

}  // namespace
}  // namespace kvist::services
