// Frontend, cache manager and workers together: what a client sees.
#include <gtest/gtest.h>

#include <limits>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "tests/integration/roles_fixture.h"

namespace kvist::services {
namespace {

class SmallPoolTest : public RolesTest {
 protected:
  SmallPoolTest() : RolesTest({.num_blocks = 100}) {}
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
  request.mutable_cache()->set_allocation(v1::CacheParams::NONE);
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

TEST_F(RolesTest, SessionOfAnUnknownKvFormatIsNotMade) {
  v1::CreateSessionRequest request;
  request.mutable_cache()->set_kv_format("q8");
  EXPECT_EQ(DetailsOf(client_->CreateSession(request).status()).field, "cache.kv_format");
  request.mutable_cache()->set_kv_format("f16");
  EXPECT_TRUE(client_->CreateSession(request).ok());
}

class GreedyByDefaultTest : public RolesTest {
 protected:
  GreedyByDefaultTest() : RolesTest({.sampling_defaults = {.temperature = 0.0f}}) {}
};

TEST_F(GreedyByDefaultTest, ChatsAreSampledAsTheModelsFileSaysUnlessTheRequestDoes) {
  v1::GenerateRequest request;
  v1::ChatMessage& hello = *request.mutable_chat()->add_messages();
  hello.set_role(v1::ChatMessage::USER);
  hello.set_content("hello");
  request.mutable_stop()->set_max_new_tokens(40);
  request.mutable_stop()->set_ignore_model_stops(true);
  const auto ids_of = [&](uint64_t seed) {
    request.mutable_sampling()->set_seed(seed);
    Generated generated;
    EXPECT_TRUE(Generate(request, &generated).ok());
    return IdsOf(generated);
  };
  EXPECT_EQ(ids_of(1), ids_of(2));
  request.mutable_sampling()->set_temperature(1.0f);
  EXPECT_NE(ids_of(1), ids_of(2));
}

TEST_F(RolesTest, ASessionsCacheHoldsForItsTurnsUnlessTheySayAnother) {
  v1::CreateSessionRequest create;
  create.set_id("s");
  create.mutable_cache()->mutable_attention()->set_window_tokens(32);
  create.mutable_cache()->mutable_attention()->set_sink_tokens(4);
  ASSERT_TRUE(client_->CreateSession(create).ok());
  const v1::GenerateRequest plain = IdsRequest(RandomIds(80, 1), 20);
  v1::GenerateRequest windowed = plain;
  *windowed.mutable_cache() = create.cache();
  v1::GenerateRequest full = InSession(plain, "s");
  full.mutable_cache()->mutable_attention()->set_window_tokens(0);
  Generated in_session, by_request, everything, over_session;
  ASSERT_TRUE(Generate(InSession(plain, "s"), &in_session).ok());
  ASSERT_TRUE(Generate(windowed, &by_request).ok());
  EXPECT_EQ(IdsOf(in_session), IdsOf(by_request));
  EXPECT_GT(by_request.finished.usage().cached_tokens(), 64);
  ASSERT_TRUE(Generate(plain, &everything).ok());
  EXPECT_NE(IdsOf(everything), IdsOf(by_request));
  EXPECT_EQ(everything.finished.usage().cached_tokens(), 0);  // other spans share nothing
  v1::ResetSessionRequest reset;
  reset.set_id("s");
  ASSERT_TRUE(client_->ResetSession(reset).ok());
  ASSERT_TRUE(Generate(full, &over_session).ok());
  EXPECT_EQ(IdsOf(over_session), IdsOf(everything));
}

TEST_F(RolesTest, ATurnMayRefineOneFieldOfItsSessionsAttention) {
  v1::CreateSessionRequest create;
  create.set_id("s");
  create.mutable_cache()->mutable_attention()->set_window_tokens(32);
  create.mutable_cache()->mutable_attention()->set_sink_tokens(4);
  ASSERT_TRUE(client_->CreateSession(create).ok());
  const auto ids_of = [&](const v1::AttentionParams& attention, bool in_session) {
    v1::GenerateRequest request = IdsRequest(RandomIds(80, 1), 20);
    if (in_session) request = InSession(request, "s");
    *request.mutable_cache()->mutable_attention() = attention;
    v1::ResetSessionRequest reset;
    reset.set_id("s");
    EXPECT_TRUE(client_->ResetSession(reset).ok());
    Generated generated;
    const absl::Status status = Generate(request, &generated);
    EXPECT_TRUE(status.ok()) << status;
    return IdsOf(generated);
  };
  const auto both = [&](int64_t window, int64_t sinks) {
    v1::AttentionParams attention;
    attention.set_window_tokens(window);
    attention.set_sink_tokens(sinks);
    return ids_of(attention, false);
  };
  v1::AttentionParams window, sinks, full;
  window.set_window_tokens(48);
  EXPECT_EQ(ids_of(window, true), both(48, 4));
  EXPECT_NE(both(48, 4), both(48, 0));
  sinks.set_sink_tokens(8);
  EXPECT_EQ(ids_of(sinks, true), both(32, 8));
  full.set_window_tokens(0);
  EXPECT_EQ(ids_of(full, true), both(0, 0));
  EXPECT_EQ(ids_of(v1::AttentionParams(), true), both(0, 0));
}

TEST_F(SmallPoolTest, AStaticRequestIsServedOrToldWhatCanBePromised) {
  v1::GenerateRequest request = IdsRequest(RandomIds(20, 1), 40);
  Generated paged, promised;
  ASSERT_TRUE(Generate(request, &paged).ok());
  request.mutable_cache()->set_allocation(v1::CacheParams::STATIC);
  ASSERT_TRUE(Generate(request, &promised).ok());
  EXPECT_EQ(IdsOf(promised), IdsOf(paged));
  request = IdsRequest(RandomIds(900, 1), 100);
  request.mutable_cache()->set_allocation(v1::CacheParams::STATIC);
  const absl::Status status = Generate(request, &promised);
  EXPECT_EQ(status.code(), absl::StatusCode::kOutOfRange) << status;
  EXPECT_EQ(DetailsOf(status).field, "cache.allocation");
  EXPECT_NE(status.message().find("800 can be promised"), absl::string_view::npos) << status;
}

TEST_F(RolesTest, TheTurnAfterATruncationGoesOnFromTheKeptTokens) {
  CreateSession("s");
  Generated first;
  ASSERT_TRUE(Generate(InSession(IdsRequest(RandomIds(40, 1), 24), "s"), &first).ok());
  v1::TruncateSessionRequest cut;
  cut.set_id("s");
  cut.set_keep_last_tokens(30);
  const auto session = client_->TruncateSession(cut);
  ASSERT_TRUE(session.ok()) << session.status();
  EXPECT_EQ(session->history_tokens(), 30);
  Generated second;
  ASSERT_TRUE(Generate(InSession(IdsRequest(RandomIds(7, 2), 10), "s"), &second).ok());
  EXPECT_EQ(second.finished.usage().prompt_tokens(), 30 + 7);
  EXPECT_EQ(second.finished.usage().cached_tokens(), 0);  // other positions, other KV
  std::vector<int32_t> kept = RandomIds(40, 1);
  for (const int32_t id : IdsOf(first)) kept.push_back(id);
  kept.erase(kept.begin(), kept.end() - 30);
  for (const int32_t id : RandomIds(7, 2)) kept.push_back(id);
  Generated fresh;
  v1::GenerateRequest request = IdsRequest(kept, 10);
  request.mutable_cache()->set_allocation(v1::CacheParams::NONE);
  ASSERT_TRUE(Generate(request, &fresh).ok());
  EXPECT_EQ(IdsOf(second), IdsOf(fresh));
}

TEST_F(RolesTest, AHistoryThatIsCutHoldsNoMemoryBeyondWhatIsKept) {
  CreateSession("s");
  Generated turn;
  ASSERT_TRUE(Generate(InSession(IdsRequest(RandomIds(100, 1), 29), "s"), &turn).ok());
  const auto memory = [&] {
    const auto sessions = client_->SessionMemoryOf("s");
    return sessions.ok() && sessions->size() == 1 ? sessions->front() : v1::SessionMemory();
  };
  ASSERT_TRUE(RoleCluster::Until([&] { return memory().tokens() == 128; }));
  v1::TruncateSessionRequest cut;
  cut.set_id("s");
  cut.set_keep_first_tokens(40);
  ASSERT_TRUE(client_->TruncateSession(cut).ok());
  EXPECT_EQ(memory().tokens(), 32);
  ASSERT_TRUE(Generate(InSession(IdsRequest(RandomIds(5, 2), 1), "s"), &turn).ok());
  EXPECT_EQ(turn.finished.usage().cached_tokens(), 32);
  v1::ResetSessionRequest reset;
  reset.set_id("s");
  ASSERT_TRUE(client_->ResetSession(reset).ok());
  EXPECT_EQ(memory().tokens(), 0);
  EXPECT_EQ(memory().exclusive_bytes(), 0);
  EXPECT_EQ(client_->GetStats()->blocks(), 0);
  ASSERT_TRUE(Generate(InSession(IdsRequest(RandomIds(5, 2), 1), "s"), &turn).ok());
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

}  // namespace
}  // namespace kvist::services
