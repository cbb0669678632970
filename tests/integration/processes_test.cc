// The three roles as processes: one is killed and started again while a stream runs.
#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "services/client/client.h"
#include "tests/integration/background.h"
#include "tests/support/model_files.h"
#include "tests/support/subprocess.h"

namespace kvist::services {
namespace {

using testing::ReadyValue;
using testing::Subprocess;

v1::GenerateRequest Request(const std::string& session, int64_t max_new) {
  v1::GenerateRequest request;
  for (int32_t id = 1; id <= 20; ++id) request.mutable_ids()->add_ids(id);
  request.set_session_id(session);
  request.mutable_stop()->set_max_new_tokens(max_new);
  request.mutable_stop()->set_ignore_model_stops(true);
  return request;
}

// A process and the address that it said it listens on.
struct Role {
  std::unique_ptr<Subprocess> process;
  std::string grpc;
};

class ProcessesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::path(::testing::TempDir()) /
              ("kvist-processes-" + std::to_string(getpid()));
    std::filesystem::create_directories(folder_);
    manager_ = StartManager("127.0.0.1:0");
    worker_ = Start({"worker", "--model", testing::GoldenPath("tiny/llama_a.F32.gguf"),
                     "--cache-manager", manager_.grpc, "--grpc", "127.0.0.1:0", "--threads", "1",
                     "--kernels", "scalar", "--kv-memory", "16MB", "--id", "w"});
    frontend_ = Start({"frontend", "--cache-manager", manager_.grpc, "--grpc", "127.0.0.1:0"});
    client_ = Connect();
    ASSERT_TRUE(Until([&] {
      const auto models = client_->ListModels();
      return models.ok() && models->models_size() == 1;
    }));
    ASSERT_TRUE(Until([&] { return MirrorIsExact(); }));
  }
  void TearDown() override {
    for (Role* role : {&frontend_, &worker_, &manager_}) {
      if (role->process == nullptr) continue;
      role->process->Kill(SIGTERM);
      EXPECT_EQ(role->process->WaitForExit(60), 0) << role->process->errors();
    }
    std::error_code error;
    std::filesystem::remove_all(folder_, error);
  }

  static Role Start(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), KVIST_BINARY);
    for (const char* more : {"--metrics", "127.0.0.1:0"}) arguments.emplace_back(more);
    Role role{.process = std::make_unique<Subprocess>(arguments)};
    role.grpc = ReadyValue(role.process->WaitForLine("kvist ready ", 60), "grpc");
    EXPECT_FALSE(role.grpc.empty()) << role.process->errors();
    return role;
  }
  Role StartManager(const std::string& address) {
    return Start({"cache-manager", "--grpc", address, "--data-dir", (folder_ / "data").string()});
  }

  std::unique_ptr<Client> Connect() const {
    return Client::Connect(frontend_.grpc, std::chrono::seconds(10)).value();
  }

  bool MirrorIsExact() const {
    const auto stats = client_->GetStats();
    return stats.ok() && stats->workers_size() == 1 && stats->workers(0).confidence() == v1::EXACT;
  }
  int64_t MirroredBlocks() const {
    const auto stats = client_->GetStats();
    return stats.ok() && stats->workers_size() == 1 ? stats->workers(0).mirrored_blocks() : -1;
  }

  std::filesystem::path folder_;
  Role manager_;
  Role worker_;
  Role frontend_;
  std::unique_ptr<Client> client_;
};

TEST_F(ProcessesTest, ManagerKilledAndStartedAgainDuringAGeneration) {
  v1::CreateSessionRequest create;
  create.set_id("s");
  ASSERT_TRUE(client_->CreateSession(create).ok());
  Generated before;
  ASSERT_TRUE(client_->Generate(Request("s", 30), {}, &before).ok());
  int64_t blocks = 0;
  ASSERT_TRUE(Until([&] { return MirrorIsExact() && (blocks = MirroredBlocks()) >= 3; }));

  // Recomputing everything for every token makes it long enough.
  v1::GenerateRequest slow = Request("s", 180);
  slow.mutable_cache()->set_allocation(v1::CacheParams::NONE);
  Background stream(Connect(), slow);
  const bool begun = stream.WaitForTokens(3);
  manager_.process->Kill(SIGKILL);
  EXPECT_EQ(manager_.process->WaitForExit(10), 128 + SIGKILL);
  const int64_t at_kill = stream.tokens;
  const bool went_on = stream.WaitForTokens(at_kill + 3);
  const absl::Status without = client_->GetStats().status();
  manager_ = StartManager(manager_.grpc);
  stream.Join();
  ASSERT_TRUE(begun);
  EXPECT_TRUE(went_on) << "at " << at_kill;
  EXPECT_EQ(without.code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(stream.status.ok()) << stream.status;
  EXPECT_EQ(stream.generated.tokens.size(), 180u);
  EXPECT_TRUE(stream.generated.finished.turn_saved());

  EXPECT_TRUE(Until([&] { return MirrorIsExact(); }));
  EXPECT_GE(MirroredBlocks(), blocks);
  // The store kept the session; its next turn goes on behind both turns.
  Generated after;
  v1::GenerateRequest next = Request("s", 2);
  next.mutable_ids()->mutable_ids()->Truncate(1);
  ASSERT_TRUE(client_->Generate(next, {}, &after).ok());
  EXPECT_EQ(after.finished.usage().prompt_tokens(), 20 + 30 + 20 + 180 + 1);
  EXPECT_GE(after.finished.usage().cached_tokens(), 32);
}

TEST_F(ProcessesTest, FrontendKilledAndTheTurnResumedAtAnother) {
  v1::CreateSessionRequest create;
  create.set_id("s");
  ASSERT_TRUE(client_->CreateSession(create).ok());
  v1::GenerateRequest request = Request("", 150);
  request.mutable_sampling()->set_temperature(0.9f);
  request.mutable_sampling()->set_seed(3);
  Generated alone;
  ASSERT_TRUE(client_->Generate(request, {}, &alone).ok());

  request.set_session_id("s");
  request.mutable_cache()->set_allocation(v1::CacheParams::NONE);
  Background stream(Connect(), request);
  const bool begun = stream.WaitForTokens(6);
  frontend_.process->Kill(SIGKILL);
  stream.Join();
  ASSERT_TRUE(begun);
  EXPECT_EQ(stream.status.code(), absl::StatusCode::kUnavailable) << stream.status;
  const Generated& first = stream.generated;
  ASSERT_LT(first.tokens.size(), alone.tokens.size());

  frontend_ = Start({"frontend", "--cache-manager", manager_.grpc, "--grpc", "127.0.0.1:0"});
  client_ = Connect();
  ASSERT_TRUE(Until([&] { return client_->ListModels()->models_size() == 1; }));
  v1::ResumeRequest resume;
  resume.set_session_id("s");
  resume.set_turn_id(first.started.turn_id());
  resume.set_next_index(static_cast<int64_t>(first.tokens.size()));
  Generated rest;
  const absl::Status resumed = client_->Resume(resume, {}, &rest);
  ASSERT_TRUE(resumed.ok()) << resumed;
  EXPECT_TRUE(rest.finished.turn_saved());
  EXPECT_EQ(first.text + rest.text, alone.text);
  ASSERT_EQ(first.tokens.size() + rest.tokens.size(), alone.tokens.size());
  for (size_t i = 0; i < rest.tokens.size(); ++i) {
    const size_t index = first.tokens.size() + i;
    EXPECT_EQ(rest.tokens[i].index(), static_cast<int64_t>(index));
    EXPECT_EQ(rest.tokens[i].id(), alone.tokens[index].id());
  }
}

TEST_F(ProcessesTest, WorkerKilledAndStartedAgainTakesTheRequestUpAgain) {
  Generated alone;
  ASSERT_TRUE(client_->Generate(Request("", 150), {}, &alone).ok());
  v1::GenerateRequest slow = Request("", 150);
  slow.mutable_cache()->set_allocation(v1::CacheParams::NONE);
  Background stream(Connect(), slow);
  const bool begun = stream.WaitForTokens(3);
  worker_.process->Kill(SIGKILL);
  EXPECT_EQ(worker_.process->WaitForExit(10), 128 + SIGKILL);
  worker_ = Start({"worker", "--model", testing::GoldenPath("tiny/llama_a.F32.gguf"),
                   "--cache-manager", manager_.grpc, "--grpc", worker_.grpc, "--threads", "1",
                   "--kernels", "scalar", "--kv-memory", "16MB", "--id", "w"});
  stream.Join();
  ASSERT_TRUE(begun);
  ASSERT_TRUE(stream.status.ok()) << stream.status;
  const Generated& during = stream.generated;
  EXPECT_EQ(during.finished.attempts(), 2u);
  ASSERT_EQ(during.tokens.size(), alone.tokens.size());
  for (size_t i = 0; i < alone.tokens.size(); ++i) {
    EXPECT_EQ(during.tokens[i].id(), alone.tokens[i].id()) << i;
    EXPECT_EQ(during.tokens[i].index(), static_cast<int64_t>(i));
  }
}

}  // namespace
}  // namespace kvist::services
