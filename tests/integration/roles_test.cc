// Frontend, cache manager and workers together: what a client sees.
#include <gtest/gtest.h>

#include <atomic>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "common/base/status.h"
#include "tests/integration/role_cluster.h"

namespace kvist::services {
namespace {

std::vector<int32_t> RandomIds(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> ids(count);
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % kSpaceId);
  return ids;
}

v1::GenerateRequest IdsRequest(const std::vector<int32_t>& ids, int64_t max_new) {
  v1::GenerateRequest request;
  request.mutable_ids()->mutable_ids()->Add(ids.begin(), ids.end());
  request.mutable_stop()->set_max_new_tokens(max_new);
  request.mutable_stop()->set_ignore_model_stops(true);
  return request;
}

v1::GenerateRequest InSession(v1::GenerateRequest request, const std::string& session) {
  request.set_session_id(session);
  return request;
}

std::vector<int32_t> IdsOf(const Generated& generated) {
  std::vector<int32_t> ids;
  for (const v1::Token& token : generated.tokens) ids.push_back(token.id());
  return ids;
}

// Runs a request in a thread of its own; `started` turns true with the first token.
class Background {
 public:
  Background(std::unique_ptr<Client> client, const v1::GenerateRequest& request)
      : client_(std::move(client)), thread_([this, request] {
          GenerateOptions options;
          options.cancellation = &cancellation;
          options.on_delta = [this](const v1::Delta&) { started = true; };
          status = client_->Generate(request, options, &generated);
        }) {}
  ~Background() { Join(); }
  void Join() {
    if (thread_.joinable()) thread_.join();
  }
  bool WaitForFirstToken() const {
    return RoleCluster::Until([&] { return started.load(); });
  }

  Cancellation cancellation;
  std::atomic<bool> started = false;
  Generated generated;
  absl::Status status;

 private:
  std::unique_ptr<Client> client_;
  std::thread thread_;
};

class RolesTest : public ::testing::Test {
 protected:
  explicit RolesTest(const RoleClusterOptions& options = {}) : cluster_(options) {}

  void CreateSession(const std::string& id) {
    v1::CreateSessionRequest request;
    request.set_id(id);
    ASSERT_TRUE(client_->CreateSession(request).ok());
  }
  absl::Status Generate(const v1::GenerateRequest& request, Generated* generated) {
    return client_->Generate(request, {}, generated);
  }

  RoleCluster cluster_;
  std::unique_ptr<Client> client_ = cluster_.Connect();
};

TEST_F(RolesTest, TokensRiseByOneAndTheEndTellsWhy) {
  Generated generated;
  ASSERT_TRUE(Generate(IdsRequest(RandomIds(20, 1), 30), &generated).ok());
  ASSERT_EQ(generated.tokens.size(), 30u);
  for (size_t i = 0; i < 30; ++i) EXPECT_EQ(generated.tokens[i].index(), static_cast<int64_t>(i));
  EXPECT_EQ(generated.finished.reason(), v1::LENGTH);
  EXPECT_EQ(generated.finished.usage().prompt_tokens(), 20);
  EXPECT_EQ(generated.finished.usage().generated_tokens(), 30);
  EXPECT_EQ(generated.started.worker_id(), "worker-1");
  EXPECT_FALSE(generated.finished.has_session_version());
}

TEST_F(RolesTest, SecondTurnSendsOnlyNewTokensAndFindsTheFirstOnesCached) {
  CreateSession("s");
  Generated first;
  ASSERT_TRUE(Generate(InSession(IdsRequest(RandomIds(40, 1), 24), "s"), &first).ok());
  EXPECT_TRUE(first.finished.turn_saved());
  Generated second;
  ASSERT_TRUE(Generate(InSession(IdsRequest(RandomIds(7, 2), 5), "s"), &second).ok());
  EXPECT_EQ(second.finished.usage().prompt_tokens(), 40 + 24 + 7);
  // All but the last generated token, whose KV nobody needed yet, and at most a partial block.
  EXPECT_GE(second.finished.usage().cached_tokens(), 48);
  EXPECT_GT(second.finished.session_version(), first.finished.session_version());
  // The same tokens in one request give the same answer.
  std::vector<int32_t> all = RandomIds(40, 1);
  const std::vector<int32_t> answer = IdsOf(first);
  all.insert(all.end(), answer.begin(), answer.end());
  const std::vector<int32_t> more = RandomIds(7, 2);
  all.insert(all.end(), more.begin(), more.end());
  Generated whole;
  v1::GenerateRequest request = IdsRequest(all, 5);
  request.mutable_cache()->set_kind(v1::CacheParams::NONE);
  ASSERT_TRUE(Generate(request, &whole).ok());
  EXPECT_EQ(IdsOf(whole), IdsOf(second));
  EXPECT_EQ(whole.finished.usage().cached_tokens(), 0);
}

TEST_F(RolesTest, SecondOfTwoTurnsAtOnceIsAbortedAndTheFirstGoesOn) {
  CreateSession("s");
  cluster_.pace.SetStepMs(10);
  Background first(cluster_.Connect(), InSession(IdsRequest(RandomIds(20, 1), 60), "s"));
  ASSERT_TRUE(first.WaitForFirstToken());
  Generated second;
  const absl::Status status = Generate(InSession(IdsRequest({1}, 1), "s"), &second);
  EXPECT_EQ(status.code(), absl::StatusCode::kAborted) << status;
  EXPECT_TRUE(second.tokens.empty());
  first.Join();
  EXPECT_TRUE(first.status.ok()) << first.status;
  EXPECT_EQ(first.generated.tokens.size(), 60u);
}

TEST_F(RolesTest, BadRequestsAreRefusedAndEverybodyElsesStreamGoesOn) {
  Generated alone;
  const v1::GenerateRequest good = IdsRequest(RandomIds(20, 3), 100);
  ASSERT_TRUE(Generate(good, &alone).ok());
  cluster_.pace.SetStepMs(5);
  Background other(cluster_.Connect(), good);
  ASSERT_TRUE(other.WaitForFirstToken());

  struct Row {
    std::function<void(v1::GenerateRequest&)> change;
    absl::StatusCode code;
    std::string field;
  };
  using G = v1::GenerateRequest;
  using enum absl::StatusCode;
  const std::vector<Row> rows = {
      {[](G& g) { g.mutable_text()->clear_text(); }, kOutOfRange, "prompt.text"},
      {[](G& g) { g.clear_prompt(); }, kOutOfRange, "prompt"},
      {[](G& g) { g = IdsRequest(RandomIds(1024, 1), 1); }, kOutOfRange, "prompt"},
      {[](G& g) { g = IdsRequest({kLetterVocabularySize}, 1); }, kInvalidArgument, "prompt.ids"},
      {[](G& g) { g = IdsRequest({-1}, 1); }, kInvalidArgument, "prompt.ids"},
      {[](G& g) { g.mutable_text()->set_text("\x7f"); }, kOutOfRange,
       "prompt"},  // no token for any of it
      {[](G& g) { g.mutable_sampling()->set_temperature(std::numeric_limits<float>::quiet_NaN()); },
       kInvalidArgument, "sampling.temperature"},
      {[](G& g) { g.mutable_sampling()->set_temperature(-1); }, kInvalidArgument,
       "sampling.temperature"},
      {[](G& g) { g.mutable_sampling()->set_top_p(-0.5f); }, kInvalidArgument, "sampling.top_p"},
      {[](G& g) { g.mutable_sampling()->set_top_k(kLetterVocabularySize + 1); }, kInvalidArgument,
       "sampling.top_k"},
      {[](G& g) { g.mutable_stop()->set_max_new_tokens(0); }, kInvalidArgument,
       "stop.max_new_tokens"},
      {[](G& g) { g.mutable_stop()->set_max_new_tokens(-5); }, kInvalidArgument,
       "stop.max_new_tokens"},
      {[](G& g) { g.mutable_stop()->add_stop_ids(9999); }, kInvalidArgument, "stop.stop_ids"},
      {[](G& g) { g.mutable_cache()->set_kv_format("q8"); }, kInvalidArgument, "cache.kv_format"},
      {[](G& g) { g.set_session_id("never-made"); }, kNotFound, ""},
      {[](G& g) { g.set_session_id("../etc"); }, kInvalidArgument, "session_id"},
      {[](G& g) { g.set_model("other"); }, kNotFound, "model"},
      {[](G& g) { g.set_priority(101); }, kInvalidArgument, "priority"},
      {[](G& g) { g.mutable_chat()->add_messages()->set_role(v1::ChatMessage::ROLE_UNSPECIFIED); },
       kInvalidArgument, "prompt.chat.role"},
  };
  for (size_t i = 0; i < rows.size(); ++i) {
    v1::GenerateRequest request = IdsRequest({1, 2, 3}, 1);
    rows[i].change(request);
    Generated generated;
    const absl::Status status = Generate(request, &generated);
    EXPECT_EQ(status.code(), rows[i].code) << i << ": " << status;
    EXPECT_EQ(DetailsOf(status).field, rows[i].field) << i << ": " << status;
    EXPECT_TRUE(generated.tokens.empty()) << i;
  }
  cluster_.pace.SetStepMs(0);
  other.Join();
  EXPECT_TRUE(other.status.ok()) << other.status;
  EXPECT_EQ(IdsOf(other.generated), IdsOf(alone));
}

TEST_F(RolesTest, HugeMaxNewTokensIsCutToTheContext) {
  Generated generated;
  ASSERT_TRUE(
      Generate(IdsRequest(RandomIds(1000, 1), std::numeric_limits<int64_t>::max()), &generated)
          .ok());
  EXPECT_EQ(generated.tokens.size(), 24u);
  EXPECT_EQ(generated.finished.reason(), v1::LENGTH);
}

TEST_F(RolesTest, CancelledTurnKeepsItsPartialAnswerAndFreesTheSession) {
  CreateSession("s");
  cluster_.pace.SetStepMs(10);
  Background first(cluster_.Connect(), InSession(IdsRequest(RandomIds(20, 1), 900), "s"));
  ASSERT_TRUE(first.WaitForFirstToken());
  first.cancellation.Cancel();
  first.Join();
  EXPECT_EQ(first.status.code(), absl::StatusCode::kCancelled);
  v1::GetSessionRequest get;
  get.set_id("s");
  ASSERT_TRUE(RoleCluster::Until([&] {
    const auto session = client_->GetSession(get);
    return session.ok() && session->open_turn_id().empty() && session->history_tokens() > 20;
  }));
  EXPECT_TRUE(RoleCluster::Until([&] { return cluster_.Idle(); }));
  cluster_.pace.SetStepMs(0);
  Generated second;
  EXPECT_TRUE(Generate(InSession(IdsRequest({1}, 1), "s"), &second).ok());
}

TEST_F(RolesTest, DeadlineSendsWhatThereIsAndKeepsTheTurn) {
  CreateSession("s");
  cluster_.pace.SetStepMs(20);
  GenerateOptions options;
  options.timeout = std::chrono::milliseconds(600);
  Generated generated;
  const absl::Status status =
      client_->Generate(InSession(IdsRequest(RandomIds(20, 1), 900), "s"), options, &generated);
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
  EXPECT_GT(generated.tokens.size(), 0u);
  EXPECT_LT(generated.tokens.size(), 900u);
  v1::GetSessionRequest get;
  get.set_id("s");
  EXPECT_TRUE(RoleCluster::Until([&] {
    const auto session = client_->GetSession(get);
    return session.ok() && session->open_turn_id().empty() && session->history_tokens() > 20;
  }));
  EXPECT_TRUE(RoleCluster::Until([&] { return cluster_.Idle(); }));
}

// Three characters in a row from the middle of an answer.
std::string LettersWithin(const Generated& generated) {
  for (size_t i = 15; i + 3 <= generated.tokens.size(); ++i) {
    std::string letters;
    for (size_t j = i; j < i + 3; ++j) {
      const int32_t id = generated.tokens[j].id();
      if (id < kSpaceId) letters.push_back(static_cast<char>('!' + id));
    }
    if (letters.size() == 3) return letters;
  }
  return {};
}

TEST_F(RolesTest, StopStringCutsTextAndTurn) {
  CreateSession("s");
  const v1::GenerateRequest request = IdsRequest(RandomIds(20, 5), 60);
  Generated plain;
  ASSERT_TRUE(Generate(request, &plain).ok());
  const std::string stop = LettersWithin(plain);
  const size_t at = plain.text.find(stop);
  ASSERT_FALSE(stop.empty());
  ASSERT_NE(at, std::string::npos);
  v1::GenerateRequest stopped = InSession(request, "s");
  stopped.mutable_stop()->add_stop_strings(stop);
  Generated cut;
  ASSERT_TRUE(Generate(stopped, &cut).ok());
  EXPECT_EQ(cut.text, plain.text.substr(0, at));
  EXPECT_EQ(cut.finished.reason(), v1::STOP);
  EXPECT_LT(cut.tokens.size(), 60u);
  v1::GetSessionRequest get;
  get.set_id("s");
  const auto session = client_->GetSession(get);
  ASSERT_TRUE(session.ok());
  EXPECT_EQ(session->history_tokens(), static_cast<int64_t>(20 + cut.tokens.size()));
  EXPECT_TRUE(RoleCluster::Until([&] { return cluster_.Idle(); }));
}

TEST_F(RolesTest, SessionsWithOneBeginningShareItsBlocks) {
  CreateSession("a");
  CreateSession("b");
  const std::vector<int32_t> system = RandomIds(64, 1);
  for (const auto& [session, seed] : {std::pair("a", 2u), std::pair("b", 3u)}) {
    std::vector<int32_t> ids = system;
    const std::vector<int32_t> own = RandomIds(40, seed);
    ids.insert(ids.end(), own.begin(), own.end());
    Generated generated;
    ASSERT_TRUE(Generate(InSession(IdsRequest(ids, 10), session), &generated).ok());
  }
  EXPECT_TRUE(RoleCluster::Until([&] {
    for (const char* session : {"a", "b"}) {
      const auto memory = client_->SessionMemoryOf(session);
      if (!memory.ok() || memory->size() != 1) return false;
      const int64_t block = cluster_.workers[0]->engine().backend().pools()[0].block_bytes;
      if (memory->front().shared_bytes() != 4 * block) return false;
      if (memory->front().exclusive_bytes() < 3 * block) return false;
    }
    return true;
  }));
}

TEST_F(RolesTest, RequestWithoutSessionThatRepeatsTheConversationContinuesIt) {
  Generated first;
  std::vector<int32_t> ids = RandomIds(48, 1);
  ASSERT_TRUE(Generate(IdsRequest(ids, 20), &first).ok());
  const std::vector<int32_t> answer = IdsOf(first);
  ids.insert(ids.end(), answer.begin(), answer.end());
  ids.push_back(1);
  Generated second;
  ASSERT_TRUE(Generate(IdsRequest(ids, 5), &second).ok());
  EXPECT_FALSE(first.started.session_id().empty());
  EXPECT_EQ(second.started.session_id(), first.started.session_id());
  EXPECT_GE(second.finished.usage().cached_tokens(), 48);
  Generated other;
  ASSERT_TRUE(Generate(IdsRequest(RandomIds(48, 9), 5), &other).ok());
  EXPECT_NE(other.started.session_id(), first.started.session_id());
}

TEST_F(RolesTest, DeletingASessionEndsItsTurn) {
  CreateSession("s");
  cluster_.pace.SetStepMs(10);
  Background first(cluster_.Connect(), InSession(IdsRequest(RandomIds(20, 1), 900), "s"));
  ASSERT_TRUE(first.WaitForFirstToken());
  ASSERT_TRUE(client_->DeleteSession("s").ok());
  first.Join();
  EXPECT_EQ(first.status.code(), absl::StatusCode::kCancelled) << first.status;
  EXPECT_EQ(client_->DeleteSession("s").code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(RoleCluster::Until([&] { return cluster_.Idle(); }));
}

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
  during.Join();
  EXPECT_TRUE(during.status.ok()) << during.status;
  EXPECT_EQ(during.generated.tokens.size(), 100u);
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

TEST_F(RolesTest, SessionOfAnUnknownKvFormatIsNotMade) {
  v1::CreateSessionRequest request;
  request.mutable_cache()->set_kv_format("q8");
  EXPECT_EQ(DetailsOf(client_->CreateSession(request).status()).field, "cache.kv_format");
  request.mutable_cache()->set_kv_format("f16");
  EXPECT_TRUE(client_->CreateSession(request).ok());
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

TEST_F(RolesTest, ChatTurnsOfASessionAreOneConversation) {
  CreateSession("s");
  v1::GenerateRequest request;
  request.set_session_id("s");
  request.mutable_stop()->set_max_new_tokens(12);
  v1::ChatMessage& hello = *request.mutable_chat()->add_messages();
  hello.set_role(v1::ChatMessage::USER);
  hello.set_content("hello there");
  Generated first;
  ASSERT_TRUE(Generate(request, &first).ok());
  request.mutable_chat()->mutable_messages(0)->set_content("and again");
  Generated second;
  ASSERT_TRUE(Generate(request, &second).ok());
  EXPECT_GT(second.finished.usage().prompt_tokens(),
            first.finished.usage().prompt_tokens() + first.finished.usage().generated_tokens());
  EXPECT_GT(second.finished.usage().cached_tokens(), 0);
  EXPECT_NE(first.started.seed(), second.started.seed());  // drawn for each
}

TEST_F(RolesTest, AfterRandomRequestsWithCancelsNothingIsActive) {
  cluster_.pace.SetStepMs(1);
  std::vector<std::thread> clients;
  for (uint32_t c = 0; c < 8; ++c) {
    clients.emplace_back([this, c] {
      std::mt19937 random(c);
      const auto client = cluster_.Connect();
      for (int i = 0; i < 25; ++i) {
        Cancellation cancellation;
        GenerateOptions options;
        options.cancellation = &cancellation;
        size_t seen = 0;
        const size_t leave_at = random() % 20;
        if (random() % 2 == 0) {
          options.on_delta = [&](const v1::Delta& delta) {
            seen += static_cast<size_t>(delta.tokens_size());
            if (seen >= leave_at) cancellation.Cancel();
          };
        }
        Generated generated;
        client
            ->Generate(IdsRequest(RandomIds(1 + random() % 100, random() % 4), 1 + random() % 40),
                       options, &generated)
            .IgnoreError();
      }
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_TRUE(RoleCluster::Until([&] { return cluster_.Idle(); }));
  EXPECT_TRUE(RoleCluster::Until([&] {
    const auto stats = client_->GetStats();
    if (!stats.ok() || stats->workers_size() != 1) return false;
    const v1::WorkerInfo& worker = stats->workers(0);
    return worker.confidence() == v1::EXACT && worker.counts_size() == 1 &&
           worker.counts(0).active() == 0 && worker.counts(0).reserved() == 0;
  }));
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
