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

TEST_F(RolesTest, EndedTurnThatAStopStringCutInsideATokenIsToldAsTheClientGotIt) {
  CreateSession("s");
  // Asks for random tokens until "ab" is among them, which is one token: "b" begins inside it.
  Generated first;
  for (uint64_t seed = 1; seed < 200 && first.finished.reason() != v1::STOP; ++seed) {
    v1::GenerateRequest request = InSession(IdsRequest(RandomIds(4, 1), 60), "s");
    request.mutable_sampling()->set_temperature(100.0f);
    request.mutable_sampling()->set_seed(seed);
    request.mutable_stop()->add_stop_strings("b");
    first = Generated();
    ASSERT_TRUE(Generate(request, &first).ok());
    if (first.tokens.empty() || first.tokens.back().id() != kAbId) first.finished.Clear();
    v1::ResetSessionRequest reset;
    reset.set_id("s");
    if (first.finished.reason() != v1::STOP) {
      ASSERT_TRUE(client_->ResetSession(reset).ok());
    }
  }
  ASSERT_EQ(first.finished.reason(), v1::STOP);
  ASSERT_TRUE(first.text.ends_with("a"));
  const auto count = static_cast<int64_t>(first.tokens.size());
  for (const int64_t index : {int64_t{0}, count - 1, count}) {
    v1::ResumeRequest resume;
    resume.set_session_id("s");
    resume.set_turn_id(first.started.turn_id());
    resume.set_next_index(index);
    Generated again;
    ASSERT_TRUE(client_->Resume(resume, {}, &again).ok());
    EXPECT_EQ(again.tokens.size(), static_cast<size_t>(count - index));
    EXPECT_TRUE(first.text.ends_with(again.text)) << again.text;
    EXPECT_EQ(again.text.empty(), index == count);
    if (index == 0) {
      EXPECT_EQ(again.text, first.text);
    }
  }
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

class NoReplacementTest : public RolesTest {
 protected:
  NoReplacementTest() : RolesTest({.workers = 1, .replay_wait_ms = 1}) {}
};

// The last worker is lost behind the first token of a session's turn, another comes, and Resume
// tells the rest: both together are what a run without trouble gives.
TEST_F(NoReplacementTest, ATurnWhoseWorkerIsLostIsResumedWhenAnotherCame) {
  v1::GenerateRequest request = IdsRequest(RandomIds(20, 1), 80);
  request.mutable_sampling()->set_temperature(0.8f);
  request.mutable_sampling()->set_seed(7);
  Generated whole;
  ASSERT_TRUE(Generate(request, &whole).ok());
  // Begins behind the first characters and is long: all text but theirs is held back when the
  // worker goes, and none of it may ever be seen.
  size_t from = 2;
  while ((static_cast<uint8_t>(whole.text[from]) & 0xc0) == 0x80) ++from;
  size_t to = from + 40;
  while ((static_cast<uint8_t>(whole.text[to]) & 0xc0) == 0x80) ++to;
  const std::string held_back = whole.text.substr(from, to - from);
  for (const std::string& stop_string : {std::string(), held_back}) {
    SCOPED_TRACE(stop_string);
    if (!stop_string.empty()) request.mutable_stop()->add_stop_strings(stop_string);
    whole = Generated();
    ASSERT_TRUE(Generate(request, &whole).ok());
    const std::string session = stop_string.empty() ? "plain" : "stopped";
    CreateSession(session);
    cluster_.pace.SetStepMs(30);
    Background stream(cluster_.Connect(), InSession(request, session));
    ASSERT_TRUE(stream.WaitForFirstToken());
    cluster_.workers.back()->Shutdown(std::chrono::milliseconds(0));
    cluster_.pace.SetStepMs(0);
    stream.Join();
    EXPECT_EQ(stream.status.code(), absl::StatusCode::kAborted) << stream.status;
    const int64_t index = DetailsOf(stream.status).resume_index;
    EXPECT_EQ(index, static_cast<int64_t>(stream.generated.tokens.size()));
    ASSERT_GT(index, 0);
    v1::GetSessionRequest get;
    get.set_id(session);
    EXPECT_EQ(client_->GetSession(get)->open_turn_id(), stream.generated.started.turn_id());
    cluster_.StartWorker();
    v1::ResumeRequest resume;
    resume.set_session_id(session);
    resume.set_turn_id(stream.generated.started.turn_id());
    resume.set_next_index(index);
    Generated rest;
    absl::Status status;
    // Until the frontend has heard of the new worker.
    ASSERT_TRUE(RoleCluster::Until([&] {
      rest = Generated();
      status = client_->Resume(resume, {}, &rest);
      return !absl::IsUnavailable(status) && !absl::IsAborted(status);
    }));
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_TRUE(rest.finished.turn_saved());
    EXPECT_EQ(rest.finished.reason(), whole.finished.reason());
    std::vector<int32_t> ids = IdsOf(stream.generated);
    for (const int32_t id : IdsOf(rest)) ids.push_back(id);
    EXPECT_EQ(ids, IdsOf(whole));
    EXPECT_EQ(stream.generated.text + rest.text, whole.text);
    EXPECT_EQ(client_->GetSession(get)->open_turn_id(), "");
  }
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
