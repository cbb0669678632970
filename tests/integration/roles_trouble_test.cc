// Frontend, cache manager and workers together: what a client sees when a role is lost,
// full or not there yet, and how it resumes.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/integration/roles_fixture.h"

namespace kvist::services {
namespace {

TEST_F(RolesTest, WithoutManagerRequestsGoOnAndSessionTurnsDoNot) {
  CreateSession("s");
  cluster_.pace.SetStepMs(5);
  Background during(cluster_.Connect(), IdsRequest(RandomIds(20, 1), 100));
  ASSERT_TRUE(during.WaitForFirstToken());
  cluster_.manager->Shutdown(std::chrono::milliseconds(0));
  Generated plain;
  EXPECT_TRUE(Generate(IdsRequest({1, 2, 3}, 5), &plain).ok());
  Generated turn;
  const absl::Status status = Generate(InSession(IdsRequest({1}, 1), "s"), &turn);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(DetailsOf(status).reason, ErrorReason::kNoManager);
  const auto stats = client_->GetStats();
  EXPECT_EQ(DetailsOf(stats.status()).reason, ErrorReason::kNoManager);
  // Not where it was looked for, nor gRPC's words about that.
  for (const absl::Status& told : {status, stats.status()}) {
    EXPECT_EQ(told.message(), "the cache manager does not answer");
  }
  during.Join();
  EXPECT_TRUE(during.status.ok()) << during.status;
  EXPECT_EQ(during.generated.tokens.size(), 100u);
}

TEST_F(RolesTest, ClientsAreNotToldWhereWorkersListen) {
  const auto stats = client_->GetStats();
  ASSERT_TRUE(stats.ok()) << stats.status();
  ASSERT_GT(stats->workers_size(), 0);
  for (const v1::WorkerInfo& worker : stats->workers()) EXPECT_EQ(worker.address(), "");
}

TEST_F(RolesTest, EndedTurnIsToldAgainFromAnyIndex) {
  CreateSession("s");
  Generated first;
  ASSERT_TRUE(Generate(InSession(IdsRequest(RandomIds(20, 1), 30), "s"), &first).ok());
  for (const int64_t index : {int64_t{0}, int64_t{7}, int64_t{30}}) {
    v1::ResumeRequest resume;
    resume.set_session_id("s");
    resume.set_turn_id(first.started.turn_id());
    resume.set_next_index(index);
    Generated again;
    ASSERT_TRUE(client_->Resume(resume, {}, &again).ok());
    const std::vector<int32_t> all = IdsOf(first);
    EXPECT_EQ(IdsOf(again), std::vector<int32_t>(all.begin() + index, all.end()));
    EXPECT_TRUE(first.text.ends_with(again.text));
    EXPECT_EQ(again.finished.reason(), v1::LENGTH);
  }
  v1::ResumeRequest resume;
  resume.set_session_id("s");
  resume.set_turn_id("turn-other");
  Generated none;
  EXPECT_EQ(client_->Resume(resume, {}, &none).code(), absl::StatusCode::kNotFound);
}

TEST_F(RolesTest, ResumeOfATurnThatRunsIsAbortedAndTheTurnGoesOn) {
  CreateSession("s");
  cluster_.pace.SetStepMs(10);
  Background first(cluster_.Connect(), InSession(IdsRequest(RandomIds(20, 1), 60), "s"));
  ASSERT_TRUE(first.WaitForFirstToken());
  v1::GetSessionRequest get;
  get.set_id("s");
  v1::ResumeRequest resume;
  resume.set_session_id("s");
  resume.set_turn_id(client_->GetSession(get)->open_turn_id());
  for (int i = 0; i < 2; ++i) {
    Generated second;
    EXPECT_EQ(client_->Resume(resume, {}, &second).code(), absl::StatusCode::kAborted);
  }
  cluster_.pace.SetStepMs(0);
  first.Join();
  EXPECT_TRUE(first.status.ok()) << first.status;
  EXPECT_TRUE(first.generated.finished.turn_saved());
}

class NoWorkerYetTest : public RolesTest {
 protected:
  NoWorkerYetTest() : RolesTest({.workers = 0}) {}
};

TEST_F(NoWorkerYetTest, ResumeThatFailsLeavesTheTurnForTheNext) {
  CreateSession("s");
  // A frontend that died: its turn is open and nobody runs it.
  const auto manager =
      v1::CacheManager::NewStub(ConnectTo(cluster_.manager->server().grpc_address()));
  v1::GenerateRequest record = InSession(IdsRequest(RandomIds(20, 1), 30), "s");
  record.set_request_id("r");
  record.mutable_sampling()->set_seed(1);
  v1::BeginTurnRequest begin;
  begin.set_session_id("s");
  begin.set_turn_id("t");
  begin.set_request_id("r");
  begin.set_request(record.SerializeAsString());
  begin.set_model_fingerprint("letters");
  v1::BeginTurnResponse begun;
  grpc::ClientContext context;
  ASSERT_TRUE(manager->BeginTurn(&context, begin, &begun).ok());
  v1::ResumeRequest resume;
  resume.set_session_id("s");
  resume.set_turn_id("t");
  Generated resumed;
  EXPECT_EQ(client_->Resume(resume, {}, &resumed).code(), absl::StatusCode::kUnavailable);
  v1::GetSessionRequest get;
  get.set_id("s");
  EXPECT_EQ(client_->GetSession(get)->open_turn_id(), "t");
  cluster_.StartWorker();
  ASSERT_TRUE(RoleCluster::Until([&] { return cluster_.ReadyWorkers() == 1; }));
  const absl::Status status = client_->Resume(resume, {}, &resumed);
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(resumed.tokens.size(), 30u);
  EXPECT_TRUE(resumed.finished.turn_saved());
  EXPECT_EQ(client_->GetSession(get)->open_turn_id(), "");
}

class TwoWorkersTest : public RolesTest {
 protected:
  TwoWorkersTest() : RolesTest({.workers = 2}) {}
};

TEST_F(TwoWorkersTest, WorkerLostInMidStreamIsReplayedByteForByte) {
  v1::GenerateRequest request = IdsRequest(RandomIds(40, 1), 80);
  request.mutable_sampling()->set_temperature(0.8f);
  request.mutable_sampling()->set_seed(7);
  Generated alone;
  ASSERT_TRUE(Generate(request, &alone).ok());
  cluster_.pace.SetStepMs(10);
  Background stream(cluster_.Connect(), request);
  ASSERT_TRUE(stream.WaitForFirstToken());
  for (auto& worker : cluster_.workers) {
    if (worker->engine().load().running_sequences == 0) continue;
    worker->Shutdown(std::chrono::milliseconds(0));
    break;
  }
  cluster_.pace.SetStepMs(0);
  stream.Join();
  EXPECT_TRUE(stream.status.ok()) << stream.status;
  EXPECT_EQ(stream.generated.finished.attempts(), 2u);
  EXPECT_EQ(IdsOf(stream.generated), IdsOf(alone));
  EXPECT_EQ(stream.generated.text, alone.text);
}

class OneAtATimeTest : public RolesTest {
 protected:
  OneAtATimeTest() : RolesTest({.max_running_requests = 1}) {}
};

TEST_F(OneAtATimeTest, OneMoreThanTheLimitIsRefusedWithADelay) {
  cluster_.pace.SetStepMs(10);
  Background first(cluster_.Connect(), IdsRequest(RandomIds(20, 1), 100));
  ASSERT_TRUE(first.WaitForFirstToken());
  Generated second;
  const absl::Status status = Generate(IdsRequest({1}, 1), &second);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(DetailsOf(status).reason, ErrorReason::kOverload);
  EXPECT_GT(DetailsOf(status).retry_after_ms, 0);
  cluster_.pace.SetStepMs(0);
  first.Join();
  EXPECT_TRUE(first.status.ok());
}

}  // namespace
}  // namespace kvist::services
