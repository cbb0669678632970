#include "services/cache_manager/cache_manager_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <future>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "cache_manager/limits.h"
#include "services/cache_manager/limits.h"
#include "services/runtime/metrics.h"
#include "tests/services/cache_manager/fake_peer.h"
#include "tests/support/http_fetch.h"
#include "tests/support/role_fixture.h"

namespace kvist::services {
namespace {

using ::testing::HasSubstr;
namespace cm = ::kvist::cache_manager;

class CacheManagerServerTest : public testing::Test {
 protected:
  CacheManagerServerTest() : manager_(StartManager()), address_(manager_->server().grpc_address()) {
    const auto channel = ConnectTo(address_);
    stub_ = v1::CacheManager::NewStub(channel);
    sessions_ = v1::Sessions::NewStub(channel);
  }
  bool IsExact(const std::string& worker) {
    return InfoOf(*stub_, worker).confidence() == v1::EXACT;
  }

  std::unique_ptr<CacheManagerServer> manager_;
  const std::string address_;
  std::unique_ptr<v1::CacheManager::Stub> stub_;
  std::unique_ptr<v1::Sessions::Stub> sessions_;
};

// A part of a snapshot that is not the next one is asked for anew each time, under the next number.
v1::WorkerMessage PartOutOfOrder(uint64_t resync_id) {
  v1::WorkerMessage message;
  message.mutable_snapshot()->set_resync_id(resync_id);
  message.mutable_snapshot()->set_index(1);
  return message;
}

TEST_F(CacheManagerServerTest, AWorkerThatReadsMayAskForMoreThanTheQueueHolds) {
  FakePeer peer(address_, "w", 1);
  ASSERT_TRUE(peer.SayHello());
  v1::ManagerMessage message;
  while (peer.Read(&message) && !message.has_resync()) {
  }
  for (size_t i = 0; i < 4 * kMaxQueuedManagerMessages; ++i) {
    ASSERT_TRUE(peer.Send(PartOutOfOrder(message.resync().resync_id())));
    ASSERT_TRUE(peer.Read(&message)) << i;
  }
  EXPECT_TRUE(InfoOf(*stub_, "w").connected());
}

TEST_F(CacheManagerServerTest, AWorkerThatDoesNotReadIsClosed) {
  FakePeer good(address_, "good", 7), deaf(address_, "deaf", 1);
  ASSERT_TRUE(good.SayHello());
  good.SendEmptySnapshot();
  ASSERT_TRUE(deaf.SayHello());
  v1::ManagerMessage message;
  while (deaf.Read(&message) && !message.has_resync()) {
  }
  // More than any buffer between the two takes; without a limit all of it would wait here.
  constexpr uint64_t kMany = 2'000'000;
  const uint64_t first = message.resync().resync_id();
  uint64_t sent = 0;
  while (sent < kMany && deaf.Send(PartOutOfOrder(first + sent))) ++sent;
  EXPECT_LT(sent, kMany);
  EXPECT_FALSE(deaf.End().ok());
  EXPECT_TRUE(WaitFor([&] { return !InfoOf(*stub_, "deaf").connected(); }));
  EXPECT_TRUE(WaitFor([&] { return IsExact("good"); }));
}

struct HostileMessage {
  const char* what;
  std::function<void(FakePeer&)> act;
};

using Act = std::function<void(FakePeer&)>;

Act AfterHello(const v1::WorkerMessage& message) {
  return [message](FakePeer& peer) {
    peer.SayHello();
    peer.Send(message);
  };
}

Act WithHello(std::function<void(v1::Hello&)> spoil) {
  return [spoil](FakePeer& peer) {
    spoil(*peer.hello().mutable_hello());
    peer.SayHello();
  };
}

std::vector<HostileMessage> BadHellos() {
  return {
      {"events before Hello", [](FakePeer& p) { p.Send(Stored(std::string(16, 'k'))); }},
      {"nothing in the message", [](FakePeer& p) { p.Send({}); }},
      {"two Hellos",
       [](FakePeer& p) {
         p.SayHello();
         p.SayHello();
       }},
      {"id with a slash", WithHello([](v1::Hello& h) { h.set_worker_id("a/b"); })},
      {"id of 65", WithHello([](v1::Hello& h) { h.set_worker_id(std::string(65, 'x')); })},
      {"incarnation 0", WithHello([](v1::Hello& h) { h.set_incarnation(0); })},
      {"version 99", WithHello([](v1::Hello& h) { h.set_protocol_version(99); })},
      {"no pools", WithHello([](v1::Hello& h) { h.clear_pools(); })},
      {"17 pools", WithHello([](v1::Hello& h) {
         while (h.pools_size() < 17) *h.add_pools() = h.pools(0);
       })},
      {"negative blocks", WithHello([](v1::Hello& h) { h.mutable_pools(0)->set_num_blocks(-1); })},
      {"huge blocks",
       WithHello([](v1::Hello& h) { h.mutable_pools(0)->set_num_blocks(INT32_MAX); })},
      {"block of 17 tokens",
       WithHello([](v1::Hello& h) { h.mutable_pools(0)->set_block_tokens(17); })},
      {"huge model name", WithHello([](v1::Hello& h) { h.set_model_name(std::string(513, 'x')); })},
      {"huge address", WithHello([](v1::Hello& h) { h.set_address(std::string(513, 'x')); })},
  };
}

std::vector<HostileMessage> BadEvents() {
  v1::WorkerMessage many_events, bad_tier = Stored(std::string(16, 'k')), zero_seq = bad_tier;
  many_events.mutable_events()->set_first_seq(1);
  for (size_t i = 0; i <= cm::kMaxEventsPerBatch; ++i) {
    many_events.mutable_events()->add_events()->mutable_released()->set_session_id("s");
  }
  bad_tier.mutable_events()->mutable_events(0)->mutable_stored()->set_tier(
      static_cast<v1::Tier>(3));
  zero_seq.mutable_events()->set_first_seq(0);
  v1::WorkerMessage odd_keys, many_keys, empty_event, digests;
  odd_keys.mutable_events()->set_first_seq(1);
  odd_keys.mutable_events()->add_events()->mutable_holds()->set_keys(std::string(17, 'k'));
  many_keys.mutable_events()->set_first_seq(1);
  v1::SessionHolds* holds = many_keys.mutable_events()->add_events()->mutable_holds();
  holds->set_session_id("s");
  holds->set_keys(std::string(16 * (cm::kMaxKeysPerEvent + 1), 'k'));
  empty_event.mutable_events()->set_first_seq(1);
  empty_event.mutable_events()->add_events();
  for (int i = 0; i < 17; ++i) digests.mutable_heartbeat()->add_digests();
  return {
      {"key of 15", AfterHello(Stored(std::string(15, 'k')))},
      {"key of 17", AfterHello(Stored(std::string(17, 'k')))},
      {"pool that is not there", AfterHello(Stored(std::string(16, 'k'), 1))},
      {"pool 65536", AfterHello(Stored(std::string(16, 'k'), 65536))},
      {"tier 3", AfterHello(bad_tier)},
      {"sequence number 0", AfterHello(zero_seq)},
      {"4,097 events", AfterHello(many_events)},
      {"17 bytes of keys", AfterHello(odd_keys)},
      {"4,097 keys", AfterHello(many_keys)},
      {"an event of no kind", AfterHello(empty_event)},
      {"17 digests", AfterHello(digests)},
  };
}

TEST_F(CacheManagerServerTest, HostilePeersCloseOnlyTheirOwnStream) {
  FakePeer honest(address_, "honest", 1);
  ASSERT_TRUE(honest.SayHello());
  honest.SendEmptySnapshot();
  ASSERT_TRUE(WaitFor([&] { return IsExact("honest"); }));
  std::vector<HostileMessage> table = BadHellos();
  for (const HostileMessage& hostile : BadEvents()) table.push_back(hostile);
  for (const HostileMessage& hostile : table) {
    FakePeer peer(address_, "hostile", 7);
    hostile.act(peer);
    const grpc::Status status = peer.End();
    EXPECT_TRUE(status.error_code() == grpc::StatusCode::INVALID_ARGUMENT ||
                status.error_code() == grpc::StatusCode::FAILED_PRECONDITION)
        << hostile.what << ": " << status.error_code() << " " << status.error_message();
    honest.SendHeartbeat();
    EXPECT_TRUE(WaitFor([&] { return IsExact("honest"); })) << hostile.what;
  }
  ASSERT_TRUE(honest.Send(Stored(std::string(16, 'k'))));
  EXPECT_TRUE(WaitFor([&] { return InfoOf(*stub_, "honest").mirrored_blocks() == 1; }));
}

TEST_F(CacheManagerServerTest, ANewStreamOfTheSameWorkerTakesTheOldOnesPlace) {
  FakePeer first(address_, "w", 5);
  ASSERT_TRUE(first.SayHello());
  first.SendEmptySnapshot();
  ASSERT_TRUE(WaitFor([&] { return IsExact("w"); }));
  FakePeer second(address_, "w", 5);
  ASSERT_TRUE(second.SayHello());
  EXPECT_EQ(first.End().error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  FakePeer reborn(address_, "w", 6);
  ASSERT_TRUE(reborn.SayHello());
  EXPECT_EQ(second.End().error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  reborn.SendEmptySnapshot();
  ASSERT_TRUE(WaitFor([&] { return IsExact("w"); }));
  FakePeer stale(address_, "w", 5);
  stale.SayHello();
  EXPECT_EQ(stale.End().error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(InfoOf(*stub_, "w").incarnation(), 6u);
}

TEST_F(CacheManagerServerTest, AWorkerAtADeadOnesAddressTakesItsPlace) {
  for (const auto& names : {std::pair("a", "b"), std::pair("d", "c")}) {
    const std::string dead = names.first;
    const std::string alive = names.second;
    auto first = std::make_unique<FakePeer>(address_, dead, 5);
    ASSERT_TRUE(first->SayHello());
    ASSERT_TRUE(WaitFor([&] { return InfoOf(*stub_, dead).connected(); }));
    first.reset();
    ASSERT_TRUE(WaitFor([&] { return !InfoOf(*stub_, dead).connected(); }));
    EXPECT_EQ(InfoOf(*stub_, dead).worker_id(), dead);  // it may come back
    FakePeer second(address_, alive, 6);
    ASSERT_TRUE(second.SayHello());
    ASSERT_TRUE(WaitFor([&] { return InfoOf(*stub_, alive).connected(); }));
    EXPECT_EQ(InfoOf(*stub_, dead).worker_id(), "");
  }
}

TEST_F(CacheManagerServerTest, LocateTellsWhatEachWorkerHolds) {
  FakePeer peer(address_, "w", 5);
  ASSERT_TRUE(peer.SayHello());
  peer.SendEmptySnapshot();
  const std::string key(16, 'k');
  ASSERT_TRUE(peer.Send(Stored(key)));
  ASSERT_TRUE(WaitFor([&] { return InfoOf(*stub_, "w").mirrored_blocks() == 1; }));
  const auto locate = [&](const std::string& keys, const std::string& model) {
    grpc::ClientContext context;
    v1::LocateRequest request;
    request.set_model_fingerprint(model);
    request.set_kv_format("f16");
    request.set_block_tokens(16);
    request.set_keys(keys);
    v1::LocateResponse response;
    const grpc::Status status = stub_->Locate(&context, request, &response);
    EXPECT_EQ(status.ok(), keys.size() % 16 == 0);
    return response;
  };
  const v1::LocateResponse found = locate(key + std::string(16, 'x'), "model");
  ASSERT_EQ(found.workers_size(), 1);
  EXPECT_EQ(found.workers(0).matched_tokens(), 16);
  EXPECT_EQ(found.workers(0).matched_device_tokens(), 16);
  EXPECT_EQ(found.workers(0).matched_disk_tokens(), 0);
  EXPECT_EQ(found.workers(0).worker().context_tokens(), 100);
  EXPECT_EQ(locate(std::string(16, 'x'), "model").workers(0).matched_tokens(), 0);
  EXPECT_EQ(locate(key, "other").workers_size(), 0);
  locate(std::string(15, 'x'), "model");
}

TEST_F(CacheManagerServerTest, AWorkerThatALocateDoubtsIsAskedForItsDigests) {
  FakePeer peer(address_, "w", 5);
  peer.hello().mutable_hello()->set_protocol_version(2);
  ASSERT_TRUE(peer.SayHello());
  peer.SendEmptySnapshot();
  ASSERT_TRUE(WaitFor([&] { return IsExact("w"); }));
  const auto locate = [&](uint64_t incarnation, int lives) {
    grpc::ClientContext context;
    v1::LocateRequest request;
    request.set_model_fingerprint("model");
    request.set_kv_format("f16");
    request.set_block_tokens(16);
    for (int i = 0; i < lives; ++i) {
      request.add_doubted()->set_worker_id("w");
      request.mutable_doubted(i)->set_incarnation(incarnation);
    }
    v1::LocateResponse response;
    return stub_->Locate(&context, request, &response).error_code();
  };
  EXPECT_EQ(locate(4, 1), grpc::StatusCode::OK);  // an earlier life: nothing is sent
  EXPECT_EQ(locate(5, 3), grpc::StatusCode::OK);
  v1::ManagerMessage message;
  ASSERT_TRUE(peer.Read(&message));
  EXPECT_TRUE(message.has_digest());
  v1::WorkerMessage drifted;
  drifted.mutable_heartbeat()->add_digests()->set_placement(1);
  ASSERT_TRUE(peer.Send(drifted));
  ASSERT_TRUE(peer.Read(&message));
  EXPECT_TRUE(message.has_resync());
  EXPECT_EQ(locate(5, static_cast<int>(cm::kMaxWorkers)), grpc::StatusCode::OK);
  EXPECT_EQ(locate(5, static_cast<int>(cm::kMaxWorkers) + 1), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(CacheManagerServerTest, BadQueriesAreInvalid) {
  const auto code = [](const grpc::Status& status) { return status.error_code(); };
  constexpr auto kInvalid = grpc::StatusCode::INVALID_ARGUMENT;
  {
    grpc::ClientContext context;
    v1::GetSessionMemoryRequest request;
    v1::GetSessionMemoryResponse response;
    request.set_page_size(1001);
    EXPECT_EQ(code(stub_->GetSessionMemory(&context, request, &response)), kInvalid);
  }
  {
    grpc::ClientContext context;
    v1::GetSessionMemoryRequest request;
    v1::GetSessionMemoryResponse response;
    request.set_session_id("nobody");
    EXPECT_EQ(code(stub_->GetSessionMemory(&context, request, &response)),
              grpc::StatusCode::NOT_FOUND);
  }
  for (const char* token : {"x", "1:zz", "-1:00000000000000000000000000000000", ":"}) {
    FakePeer peer(address_, "w", 5);
    ASSERT_TRUE(peer.SayHello());
    ASSERT_TRUE(WaitFor([&] { return InfoOf(*stub_, "w").worker_id() == "w"; }));
    grpc::ClientContext context;
    v1::ListBlocksRequest request;
    request.set_worker_id("w");
    request.set_page_token(token);
    v1::ListBlocksResponse response;
    EXPECT_EQ(code(stub_->ListBlocks(&context, request, &response)), kInvalid) << token;
  }
  v1::EvictRequest nothing, no_blocks, no_worker;
  no_blocks.mutable_count();
  no_worker.set_worker_id("nobody");
  no_worker.mutable_count()->set_blocks(1);
  for (const auto& [request, expected] :
       {std::pair(nothing, kInvalid), std::pair(no_blocks, kInvalid),
        std::pair(no_worker, grpc::StatusCode::NOT_FOUND)}) {
    grpc::ClientContext context;
    v1::EvictResponse response;
    EXPECT_EQ(code(stub_->Evict(&context, request, &response)), expected);
  }
}

TEST_F(CacheManagerServerTest, EvictDoesNotWaitForEverForASilentWorker) {
  FakePeer silent(address_, "silent", 5);
  ASSERT_TRUE(silent.SayHello());
  ASSERT_TRUE(WaitFor([&] { return InfoOf(*stub_, "silent").worker_id() == "silent"; }));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(2));
  v1::EvictRequest request;
  request.mutable_count()->set_blocks(1);
  v1::EvictResponse response;
  const grpc::Status status = stub_->Evict(&context, request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(response.outcomes_size(), 1);
  EXPECT_EQ(response.outcomes(0).result(), v1::CommandOutcome::REFUSED);
}

// Else the release could meet the first turn of the new one: it cancels, and drops blocks.
TEST_F(CacheManagerServerTest, WhoTakesTheNameOfASessionThatIsGoneWaitsForItsRelease) {
  FakePeer peer(address_, "w", 5);
  ASSERT_TRUE(peer.SayHello());
  peer.SendEmptySnapshot();
  v1::WorkerMessage holds;
  holds.mutable_events()->set_first_seq(1);
  holds.mutable_events()->add_events()->mutable_holds()->set_session_id("s");
  ASSERT_TRUE(peer.Send(holds));
  v1::GetSessionMemoryRequest about;
  about.set_session_id("s");
  ASSERT_TRUE(WaitFor([&] {
    grpc::ClientContext context;
    v1::GetSessionMemoryResponse response;
    return stub_->GetSessionMemory(&context, about, &response).ok();
  }));
  std::future<bool> created = std::async(std::launch::async, [&] {
    grpc::ClientContext context;
    v1::CreateSessionRequest request;
    request.set_id("s");
    v1::Session session;
    return sessions_->Create(&context, request, &session).ok();
  });
  v1::ManagerMessage message;
  while (peer.Read(&message) && !message.has_evict()) {
  }
  EXPECT_TRUE(message.evict().session().release());
  EXPECT_EQ(created.wait_for(std::chrono::milliseconds(100)), std::future_status::timeout);
  v1::WorkerMessage done;
  done.mutable_outcome()->set_request_id(message.evict().request_id());
  ASSERT_TRUE(peer.Send(done));
  EXPECT_TRUE(created.get());
}

TEST_F(CacheManagerServerTest, EvictOnAllGoesOnPastAWorkerThatRefuses) {
  FakePeer first(address_, "a", 5), second(address_, "b", 5);
  for (FakePeer* peer : {&first, &second}) ASSERT_TRUE(peer->SayHello());
  for (const char* id : {"a", "b"}) {
    ASSERT_TRUE(WaitFor([&] { return InfoOf(*stub_, id).worker_id() == id; }));
  }
  const auto evict = [&](const std::string& worker) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(2));
    v1::EvictRequest request;
    request.set_worker_id(worker);
    request.set_request_id("same");  // in flight to "a" when it is sent to all
    request.mutable_count()->set_blocks(1);
    v1::EvictResponse response;
    const grpc::Status status = stub_->Evict(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  };
  EXPECT_EQ(evict("a").outcomes_size(), 1);
  const v1::EvictResponse response = evict("");
  ASSERT_EQ(response.outcomes_size(), 2);
  std::map<std::string, std::string> reasons;
  for (const v1::WorkerOutcome& outcome : response.outcomes()) {
    EXPECT_EQ(outcome.result(), v1::CommandOutcome::REFUSED);
    reasons[outcome.worker_id()] = outcome.reason();
  }
  EXPECT_THAT(reasons["a"], HasSubstr("in flight"));
  EXPECT_THAT(reasons["b"], HasSubstr("no answer in time"));
}

TEST_F(CacheManagerServerTest, SessionsOutliveARestartAndTheStoreHasOneOwner) {
  CacheManagerServerOptions options;
  options.data_dir = testing::TempDir() + "manager_" + std::to_string(getpid());
  std::filesystem::remove_all(options.data_dir);
  auto first = StartManager(options);
  EXPECT_EQ(CacheManagerServer::Start(options).status().code(), absl::StatusCode::kUnavailable);
  const auto create = [](CacheManagerServer& manager) {
    grpc::ClientContext context;
    v1::CreateSessionRequest request;
    request.set_id("chat");
    v1::Session session;
    return v1::Sessions::NewStub(manager.server().InProcessChannel())
        ->Create(&context, request, &session)
        .error_code();
  };
  EXPECT_EQ(create(*first), grpc::StatusCode::OK);
  first.reset();
  const auto second = StartManager(options);
  EXPECT_EQ(create(*second), grpc::StatusCode::ALREADY_EXISTS);
  std::filesystem::remove_all(options.data_dir);
}

TEST(CacheManagerMetricsTest, TheScrapeHasExactlyTheDeclaredNames) {
  CacheManagerServerOptions options;
  options.server.metrics_address = "127.0.0.1:0";
  const auto manager = StartManager(options);
  FakePeer peer(manager->server().grpc_address(), "w", 5);
  ASSERT_TRUE(peer.SayHello());
  std::set<std::string> declared;
  for (const MetricDescription& row : DeclaredMetrics()) {
    if (row.role == MetricRole::kCacheManager) declared.insert(row.name);
  }
  std::set<std::string> scraped;
  EXPECT_TRUE(WaitFor([&] {  // the worker's row comes with the next tick
    const std::string body = test::HttpGet(manager->server().metrics_address(), "/metrics").body;
    const std::string mark = "# TYPE ";
    for (size_t at = body.find(mark); at != std::string::npos; at = body.find(mark, at + 1)) {
      const size_t name = at + mark.size();
      scraped.insert(body.substr(name, body.find(' ', name) - name));
    }
    return scraped.size() >= declared.size();
  }));
  EXPECT_EQ(scraped, declared);
}

TEST(CacheManagerMetricsTest, AWorkerThatIsGoneHasNoSeries) {
  CacheManagerServerOptions options;
  options.server.metrics_address = "127.0.0.1:0";
  const auto manager = StartManager(options);
  const auto scraped = [&](const std::string& text) {
    const std::string body = test::HttpGet(manager->server().metrics_address(), "/metrics").body;
    return body.find(text) != std::string::npos;
  };
  auto gone = std::make_unique<FakePeer>(manager->server().grpc_address(), "gone", 5);
  ASSERT_TRUE(gone->SayHello());
  EXPECT_TRUE(WaitFor([&] { return scraped("worker=\"gone\""); }));
  gone.reset();
  FakePeer next(manager->server().grpc_address(), "next", 6);  // at its address
  ASSERT_TRUE(next.SayHello());
  EXPECT_TRUE(WaitFor([&] { return scraped("worker=\"next\"") && !scraped("worker=\"gone\""); }));
}

TEST(CacheManagerShutdownTest, ItDoesNotWaitForWorkersThatStay) {
  const auto manager = StartManager();
  FakePeer peer(manager->server().grpc_address(), "w", 5);
  ASSERT_TRUE(peer.SayHello());
  v1::ManagerMessage welcome;
  ASSERT_TRUE(peer.Read(&welcome));
  const auto begin = std::chrono::steady_clock::now();
  manager->Shutdown(std::chrono::minutes(5));
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::minutes(1));
  EXPECT_FALSE(peer.End().ok());
}

}  // namespace
}  // namespace kvist::services
