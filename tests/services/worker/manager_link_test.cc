// Worker and cache manager together: the mirror is the pool, whatever happens between the two.
#include "services/worker/manager_link.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <future>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cache_manager/limits.h"
#include "tests/support/captured_log.h"
#include "tests/support/role_fixture.h"
#include "tests/support/simulated_clock.h"

namespace kvist::services {
namespace {

class ManagerLinkTest : public testing::Test {
 protected:
  void StartBoth(const worker::HashBackendOptions& backend = {}, WorkerServerOptions options = {}) {
    manager_ = StartManager();
    address_ = manager_->server().grpc_address();
    Connect();
    options.cache_manager_address = address_;
    worker_ = StartWorker(backend, options);
  }
  void Connect() {
    const auto channel = ConnectTo(address_);
    stub_ = v1::CacheManager::NewStub(channel);
    sessions_ = v1::Sessions::NewStub(channel);
  }
  v1::SessionMemory MemoryOf(const std::string& session) {
    grpc::ClientContext context;
    v1::GetSessionMemoryRequest request;
    request.set_session_id(session);
    v1::GetSessionMemoryResponse response;
    const grpc::Status status = stub_->GetSessionMemory(&context, request, &response);
    return status.ok() && response.sessions_size() == 1 ? response.sessions(0)
                                                        : v1::SessionMemory();
  }
  Generated RunSession(const std::string& session, std::vector<int32_t> prompt,
                       int64_t new_tokens) {
    v1::WorkerGenerateRequest request =
        MakeRequest(absl::StrCat("r", next_request_++), std::move(prompt), new_tokens);
    request.set_session_id(session);
    Generated result = Generate(*worker_.stub, request);
    EXPECT_TRUE(result.status.ok()) << result.status;
    return result;
  }
  const std::string& worker_id() { return worker_.server->worker_id(); }

  SimulatedClock clock_;  // of those that are given it
  std::unique_ptr<CacheManagerServer> manager_;
  std::string address_;
  std::unique_ptr<v1::CacheManager::Stub> stub_;
  std::unique_ptr<v1::Sessions::Stub> sessions_;
  TestWorker worker_;
  std::atomic<int> next_request_{0};
};

TEST_F(ManagerLinkTest, TheMirrorFollowsWhatTheWorkerStores) {
  StartBoth({.windows = {0, 32}});
  ExpectMirrorIsPool(*stub_, *worker_.server);
  RunSession("a", Prompt(1, 70), 30);
  ExpectMirrorIsPool(*stub_, *worker_.server);
  EXPECT_GT(BlocksOfPool(worker_.server->engine()).size(), 4u);
  const v1::WorkerInfo info = InfoOf(*stub_, worker_id());
  EXPECT_EQ(info.address(), worker_.server->server().grpc_address());
  EXPECT_EQ(info.context_tokens(), 512);
  EXPECT_EQ(info.pools_size(), 2);
  EXPECT_EQ(info.pools(1).group(), "window=32");
  EXPECT_FALSE(info.suspect());
}

TEST_F(ManagerLinkTest, EvictionsUnderPressureReachTheMirrorAndTheMetrics) {
  StartBoth({.num_blocks = 12});
  for (int i = 0; i < 12; ++i) RunSession(absl::StrCat("s", i), Prompt(i, 80), 20);
  ExpectMirrorIsPool(*stub_, *worker_.server);
  ASSERT_TRUE(WaitFor([&] {
    grpc::ClientContext context;
    v1::GetStatsResponse stats;
    return stub_->GetStats(&context, v1::GetStatsRequest(), &stats).ok() &&
           stats.evictions_by_cause().at("capacity") > 0 && stats.events_applied() > 0;
  }));
}

TEST_F(ManagerLinkTest, AManagerThatIsRestartedDuringAGenerationIsExactAfterwards) {
  StartBoth({.context_tokens = 4096});
  RunSession("implicit-before", Prompt(2, 100), 10);
  ExpectMirrorIsPool(*stub_, *worker_.server);
  // The generation stands still at one step until the manager is gone, and at a later one until
  // another is there.
  std::promise<void> killed, restarted;
  int steps = 0;
  worker_.control->on_run = [&](const worker::Batch&) {
    ++steps;
    if (steps == 50) killed.get_future().wait();
    if (steps == 300) restarted.get_future().wait();
  };
  Generated result;
  std::atomic<int> tokens{0};
  std::thread client([&] {
    v1::WorkerGenerateRequest request = MakeRequest("long", Prompt(3, 200), 600);
    request.set_session_id("implicit-during");
    grpc::ClientContext context;
    result = Generate(*worker_.stub, request, context, [&](const v1::WorkerGenerateResponse& m) {
      tokens += m.tokens().tokens_size();
    });
  });
  EXPECT_TRUE(WaitFor([&] { return tokens > 20; }));
  manager_->Shutdown(std::chrono::milliseconds(0));
  manager_.reset();
  killed.set_value();
  EXPECT_TRUE(WaitFor([&] { return tokens > 200; }));
  CacheManagerServerOptions options;
  options.server.grpc_address = address_;
  manager_ = RestartManager(options);
  EXPECT_LT(tokens, 600);
  restarted.set_value();
  client.join();
  EXPECT_TRUE(result.status.ok()) << result.status;
  EXPECT_EQ(result.ids.size(), 600u);
  Connect();
  ExpectMirrorIsPool(*stub_, *worker_.server);
  EXPECT_EQ(MemoryOf("implicit-before").session_id(), "implicit-before");
  EXPECT_EQ(MemoryOf("implicit-during").session_id(), "implicit-during");
}

TEST_F(ManagerLinkTest, AStepLongerThanTheLeaseLosesNoWorker) {
  CacheManagerServerOptions manager;
  manager.clock = &clock_;
  manager_ = StartManager(manager);
  address_ = manager_->server().grpc_address();
  Connect();
  WorkerServerOptions options;
  options.cache_manager_address = address_;
  options.clock = &clock_;
  worker_ = StartWorker({}, options);
  ExpectMirrorIsPool(*stub_, *worker_.server);
  std::promise<void> begun, let_go;
  int steps = 0;
  worker_.control->on_run = [&](const worker::Batch&) {
    if (++steps != 3) return;
    begun.set_value();
    let_go.get_future().wait();
  };
  Generated result;
  std::thread client([&] { result = RunSession("a", Prompt(1, 40), 20); });
  begun.get_future().wait();
  // Three leases. The lag is zero only once the manager has heard the worker anew.
  for (int64_t passed_ms = 0; passed_ms < 3 * cache_manager::kLostAfterMs;
       passed_ms += cache_manager::kHeartbeatIntervalMs) {
    clock_.Advance(std::chrono::milliseconds(cache_manager::kHeartbeatIntervalMs));
    const bool heard = WaitFor([&] {
      const v1::WorkerInfo info = InfoOf(*stub_, worker_id());
      return info.worker_id() == worker_id() && info.lag_ms() == 0;
    });
    EXPECT_TRUE(heard) << passed_ms;
    if (!heard) break;
    EXPECT_FALSE(InfoOf(*stub_, worker_id()).suspect());
  }
  EXPECT_EQ(InfoOf(*stub_, worker_id()).confidence(), v1::LAGGING);
  let_go.set_value();
  client.join();
  EXPECT_EQ(result.ids.size(), 20u);
  ASSERT_TRUE(WaitFor([&] {
    clock_.Advance(std::chrono::milliseconds(100));
    return InfoOf(*stub_, worker_id()).confidence() == v1::EXACT;
  }));
  ExpectMirrorIsPool(*stub_, *worker_.server);
}

TEST_F(ManagerLinkTest, EventsLostBeforeTheManagerCameAreMadeGoodByASnapshot) {
  manager_ = StartManager();
  address_ = manager_->server().grpc_address();
  manager_.reset();
  WorkerServerOptions options;
  options.cache_manager_address = address_;
  worker_ = StartWorker({.num_blocks = 16}, options);
  for (int i = 0; i < 10; ++i) RunSession(absl::StrCat("s", i), Prompt(i, 64), 20);
  // As after an overflow: what waits is gone, and the numbers jump.
  worker_.server->engine().RunBetweenSteps(
      [](worker::EngineState& state) { state.events.DropThrough(state.events.last_seq()); });
  CacheManagerServerOptions again;
  again.server.grpc_address = address_;
  manager_ = RestartManager(again);
  Connect();
  ExpectMirrorIsPool(*stub_, *worker_.server);
}

TEST_F(ManagerLinkTest, AGapWhileConnectedIsHealed) {
  StartBoth();
  RunSession("a", Prompt(1, 64), 4);
  ExpectMirrorIsPool(*stub_, *worker_.server);
  // Drops events before the link can take them: in the step that makes them.
  for (int i = 0; i < 5; ++i) {
    worker_.server->engine().RunBetweenSteps([&](worker::EngineState& state) {
      state.pools[0]->EvictSome(1, cache_manager::EvictionCause::kCapacity);
      state.events.DropThrough(state.events.last_seq());
    });
    ExpectMirrorIsPool(*stub_, *worker_.server);
  }
  ASSERT_TRUE(WaitFor([&] {
    grpc::ClientContext context;
    v1::GetStatsResponse stats;
    return stub_->GetStats(&context, v1::GetStatsRequest(), &stats).ok() && stats.resyncs() >= 2;
  }));
}

TEST_F(ManagerLinkTest, SessionsShareASystemPromptAndMemoryTellsSharedFromExclusive) {
  StartBoth();
  std::vector<int32_t> first = Prompt(1, 64), second = Prompt(1, 64);
  for (int i = 0; i < 48; ++i) {
    first.push_back(i % 11);
    second.push_back(20 + i % 13);
  }
  RunSession("a", first, 1);
  RunSession("b", second, 1);
  ExpectMirrorIsPool(*stub_, *worker_.server);
  const int64_t block_bytes = InfoOf(*stub_, worker_id()).pools(0).bytes_per_block();
  for (const char* session : {"a", "b"}) {
    const v1::SessionMemory memory = MemoryOf(session);
    EXPECT_EQ(memory.shared_bytes(), 4 * block_bytes) << session;
    EXPECT_EQ(memory.exclusive_bytes(), 3 * block_bytes) << session;
    EXPECT_EQ(memory.blocks(), 7) << session;
    EXPECT_EQ(memory.tokens(), 112) << session;
    EXPECT_TRUE(memory.implicit()) << session;
  }
  grpc::ClientContext context;
  v1::ListBlocksRequest request;
  request.set_worker_id(worker_id());
  request.set_session_id("a");
  v1::ListBlocksResponse blocks;
  ASSERT_TRUE(stub_->ListBlocks(&context, request, &blocks).ok());
  ASSERT_EQ(blocks.blocks_size(), 7);
  EXPECT_EQ(blocks.blocks(0).sessions(), 2u);
  EXPECT_EQ(blocks.blocks(6).sessions(), 1u);
}

TEST_F(ManagerLinkTest, EvictAsksTheWorkerAndTellsWhatItDid) {
  StartBoth();
  RunSession("a", Prompt(1, 64), 1);
  ExpectMirrorIsPool(*stub_, *worker_.server);
  const auto evict = [&](const v1::EvictRequest& request) {
    grpc::ClientContext context;
    v1::EvictResponse response;
    const grpc::Status status = stub_->Evict(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  };
  v1::EvictRequest request;
  request.mutable_count()->set_blocks(1);
  ASSERT_EQ(evict(request).outcomes_size(), 1);
  EXPECT_EQ(evict(request).outcomes(0).blocks(), 1);
  EXPECT_EQ(MemoryOf("a").blocks(), 2);
  RunSession("a", Prompt(1, 64), 9);  // the pool's fifth block is a partial one now
  request.mutable_session()->set_session_id("a");
  const v1::EvictResponse all = evict(request);
  EXPECT_EQ(all.outcomes(0).result(), v1::CommandOutcome::DONE);
  EXPECT_EQ(all.outcomes(0).blocks(), 4);
  EXPECT_TRUE(BlocksOfPool(worker_.server->engine()).empty());
  ExpectMirrorIsPool(*stub_, *worker_.server);
}

TEST_F(ManagerLinkTest, DeletingASessionCancelsItsRequestAndFreesItsBlocks) {
  StartBoth({.context_tokens = 4096});
  grpc::ClientContext create;
  v1::CreateSessionRequest creation;
  creation.set_id("chat");
  v1::Session session;
  ASSERT_TRUE(sessions_->Create(&create, creation, &session).ok());
  Generated result;
  std::atomic<bool> begun{false};
  std::thread client([&] {
    v1::WorkerGenerateRequest request = MakeRequest("long", Prompt(3, 64), 900);
    request.set_session_id("chat");
    grpc::ClientContext context;
    result = Generate(*worker_.stub, request, context, [&](const v1::WorkerGenerateResponse& m) {
      begun = begun || m.has_tokens();
    });
  });
  ASSERT_TRUE(WaitFor([&] { return begun && MemoryOf("chat").blocks() > 0; }));
  grpc::ClientContext context;
  v1::DeleteSessionRequest deletion;
  deletion.set_id("chat");
  v1::DeleteSessionResponse nothing;
  ASSERT_TRUE(sessions_->Delete(&context, deletion, &nothing).ok());
  client.join();
  if (result.ids.size() < 900) {
    EXPECT_EQ(result.status.code(), absl::StatusCode::kCancelled);
  }
  EXPECT_TRUE(WaitFor([&] { return BlocksOfPool(worker_.server->engine()).empty(); }));
  ExpectMirrorIsPool(*stub_, *worker_.server);
  EXPECT_EQ(MemoryOf("chat").session_id(), "");
}

// A manager whose store outlives it; sessions can be deleted while the worker is away.
class LeftoverTest : public ManagerLinkTest {
 protected:
  LeftoverTest() {
    options_.data_dir = testing::TempDir() + "leftover_" + std::to_string(getpid());
    std::filesystem::remove_all(options_.data_dir);
    manager_ = StartManager(options_);
    address_ = manager_->server().grpc_address();
    Connect();
    WorkerServerOptions worker;
    worker.cache_manager_address = address_;
    worker_ = StartWorker({.context_tokens = 4096}, worker);
  }
  ~LeftoverTest() override { std::filesystem::remove_all(options_.data_dir); }

  void CreateSession(const std::string& id) {
    grpc::ClientContext context;
    v1::CreateSessionRequest request;
    request.set_id(id);
    v1::Session session;
    ASSERT_TRUE(sessions_->Create(&context, request, &session).ok());
  }
  void StopManager() {
    manager_->Shutdown(std::chrono::milliseconds(0));
    manager_.reset();
  }
  // By a manager at an address that the worker does not know.
  void DeleteElsewhere(const std::string& id) {
    const auto other = StartManager(options_);
    grpc::ClientContext context;
    v1::DeleteSessionRequest request;
    request.set_id(id);
    v1::DeleteSessionResponse nothing;
    EXPECT_TRUE(v1::Sessions::NewStub(other->server().InProcessChannel())
                    ->Delete(&context, request, &nothing)
                    .ok());
  }
  void StartManagerAgain() {
    CacheManagerServerOptions again = options_;
    again.server.grpc_address = address_;
    manager_ = RestartManager(again);
    Connect();
  }

  CacheManagerServerOptions options_;
};

TEST_F(LeftoverTest, ASessionDeletedWhileTheWorkerWasAwayIsReleasedWhenItComesBack) {
  for (const char* session : {"deleted", "kept"}) CreateSession(session);
  RunSession("deleted", Prompt(1, 64), 20);
  RunSession("kept", Prompt(2, 64), 20);
  RunSession("implicit-1", Prompt(3, 64), 20);
  ExpectMirrorIsPool(*stub_, *worker_.server);
  const size_t blocks = BlocksOfPool(worker_.server->engine()).size();
  StopManager();
  DeleteElsewhere("deleted");
  StartManagerAgain();
  EXPECT_TRUE(WaitFor([&] {
    return InfoOf(*stub_, worker_id()).confidence() == v1::EXACT &&
           MemoryOf("deleted").session_id().empty();
  }));
  ExpectMirrorIsPool(*stub_, *worker_.server);
  EXPECT_EQ(BlocksOfPool(worker_.server->engine()).size(), blocks - 5);
  EXPECT_EQ(MemoryOf("kept").blocks(), 5);
  EXPECT_EQ(MemoryOf("implicit-1").blocks(), 5);
}

TEST_F(LeftoverTest, ARequestThatStillRunsEndsBeforeItsDeletedSessionIsReleased) {
  CreateSession("deleted");
  std::promise<void> gone, back;
  int steps = 0;
  worker_.control->on_run = [&](const worker::Batch&) {
    ++steps;
    if (steps == 50) gone.get_future().wait();
    if (steps == 200) back.get_future().wait();
  };
  Generated result;
  std::atomic<int> tokens{0};
  std::thread client([&] {
    v1::WorkerGenerateRequest request = MakeRequest("long", Prompt(3, 64), 600);
    request.set_session_id("deleted");
    grpc::ClientContext context;
    result = Generate(*worker_.stub, request, context, [&](const v1::WorkerGenerateResponse& m) {
      tokens += m.tokens().tokens_size();
    });
  });
  EXPECT_TRUE(WaitFor([&] { return tokens > 20; }));
  StopManager();
  gone.set_value();
  DeleteElsewhere("deleted");
  StartManagerAgain();
  back.set_value();
  client.join();
  EXPECT_TRUE(result.status.ok()) << result.status;
  EXPECT_EQ(result.ids.size(), 600u);
  EXPECT_TRUE(WaitFor([&] { return BlocksOfPool(worker_.server->engine()).empty(); }));
  ExpectMirrorIsPool(*stub_, *worker_.server);
  EXPECT_EQ(MemoryOf("deleted").session_id(), "");
}

// Refuses every stream, each time as the test says.
class RefusingManager final : public v1::CacheManager::Service {
 public:
  grpc::Status WorkerStream(
      grpc::ServerContext*,
      grpc::ServerReaderWriter<v1::ManagerMessage, v1::WorkerMessage>* stream) override {
    v1::WorkerMessage hello;
    stream->Read(&hello);
    ++calls;
    return {grpc::StatusCode::INVALID_ARGUMENT, absl::StrCat("pools: reason ", reason.load())};
  }
  std::atomic<int> calls{0};
  std::atomic<int> reason{1};
};

TEST_F(ManagerLinkTest, WhyTheManagerDoesNotTakeTheWorkerIsToldOnceForEachReason) {
  const CapturedLog log;
  RefusingManager refusing;
  auto server = RoleServer::Start({.role = "cache-manager"}, {&refusing});
  ASSERT_TRUE(server.ok()) << server.status();
  WorkerServerOptions options;
  options.cache_manager_address = (*server)->grpc_address();
  worker_ = StartWorker({}, options);
  ASSERT_TRUE(WaitFor([&] { return refusing.calls >= 3; }));
  EXPECT_EQ(log.Lines("pools: reason 1").size(), 1u);
  refusing.reason = 2;
  ASSERT_TRUE(WaitFor([&] { return log.Lines("pools: reason 2").size() == 1; }));
  const int calls = refusing.calls;
  ASSERT_TRUE(WaitFor([&] { return refusing.calls >= calls + 2; }));
  EXPECT_EQ(log.Lines("pools: reason 2").size(), 1u);
  EXPECT_EQ(log.Lines("does not take this worker").size(), 2u);
  worker_.server->Shutdown(std::chrono::milliseconds(0));
  (*server)->Shutdown(std::chrono::milliseconds(0));
}

TEST_F(ManagerLinkTest, AfterRequestsWithRandomCancelsNothingIsActiveAndTheMirrorIsThePool) {
  WorkerServerOptions options;
  options.engine.max_running_sequences = 8;
  StartBoth({.windows = {0, 48}, .num_blocks = 96, .context_tokens = 256}, options);
  constexpr int kClients = 8;
  const int per_client = 125;  // 1,000 in all
  std::atomic<int> cancelled{0}, finished{0};
  std::vector<std::thread> clients;
  for (int c = 0; c < kClients; ++c) {
    clients.emplace_back([&, c] {
      std::mt19937 random(static_cast<uint32_t>(c));
      for (int i = 0; i < per_client; ++i) {
        v1::WorkerGenerateRequest request = MakeRequest(
            absl::StrCat("c", c, "-", i),
            Prompt(static_cast<int32_t>(random() % 9), 1 + random() % 120), 1 + random() % 60);
        request.set_session_id(absl::StrCat("s", random() % 20));
        const size_t cancel_after = random() % 3 == 0 ? random() % 10 : 1000;
        grpc::ClientContext context;
        if (random() % 11 == 0) {
          context.set_deadline(std::chrono::system_clock::now() +
                               std::chrono::milliseconds(random() % 20));
        }
        size_t messages = 0;
        const Generated result =
            Generate(*worker_.stub, request, context, [&](const v1::WorkerGenerateResponse&) {
              if (++messages > cancel_after) context.TryCancel();
            });
        ++(result.status.ok() ? finished : cancelled);
      }
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(cancelled + finished, kClients * per_client);
  EXPECT_GT(cancelled, 50);
  EXPECT_GT(finished, 300);
  worker::Engine& engine = worker_.server->engine();
  ASSERT_TRUE(WaitFor([&] { return engine.idle(); }));
  engine.RunBetweenSteps([](worker::EngineState& state) {
    for (const auto& pool : state.pools) {
      EXPECT_EQ(pool->Counts().active, 0);
      EXPECT_EQ(pool->Counts().reserved, 0);
      EXPECT_EQ(pool->Counts().moving, 0);
      EXPECT_TRUE(pool->CheckInvariants().ok()) << pool->CheckInvariants();
    }
    EXPECT_TRUE(state.sessions.CheckInvariants().ok());
  });
  const cache_manager::WorkerLoad load = engine.load();
  EXPECT_EQ(load.running_sequences, 0u);
  EXPECT_EQ(load.waiting_sequences, 0u);
  EXPECT_EQ(load.queued_prefill_tokens, 0u);
  ExpectMirrorIsPool(*stub_, *worker_.server);
}

}  // namespace
}  // namespace kvist::services
