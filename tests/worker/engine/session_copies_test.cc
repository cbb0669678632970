#include "worker/engine/session_copies.h"

#include <chrono>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "common/base/status.h"
#include "gtest/gtest.h"
#include "tests/support/hash_backend.h"
#include "tests/support/hash_reference.h"
#include "tests/support/recording_sink.h"
#include "tests/support/session_move.h"
#include "tests/support/simulated_clock.h"
#include "worker/engine/engine_core.h"

namespace kvist::worker {
namespace {

class SessionCopiesTest : public testing::Test {
 protected:
  std::unique_ptr<EngineCore> MakeCore() {
    return std::make_unique<EngineCore>(EngineOptions(),
                                        std::make_unique<HashBackend>(backend, control), &clock);
  }
  std::shared_ptr<RecordingSink> Run(EngineCore& core, GenerateRequest request) {
    EXPECT_TRUE(PrepareRequest(core.limits(), &request).ok());
    auto sink = std::make_shared<RecordingSink>();
    core.Add(std::move(request), sink, clock.Now());
    while (!core.idle()) {
      EXPECT_TRUE(core.Step());
      EXPECT_TRUE(core.CheckInvariants().ok()) << core.CheckInvariants();
    }
    return sink;
  }
  GenerateRequest Turn(int64_t prompt, int64_t max_new) {
    GenerateRequest request = RequestOf("a", Ids(prompt, 1), max_new);
    request.session = SessionId("s");
    request.tenant_salt = "salt";
    return request;
  }
  // The turn after it.
  GenerateRequest Next(const SessionHistory& history) {
    GenerateRequest request = RequestOf("b", history.tokens, 20);
    request.prompt_ids.push_back(5);
    request.prompt_ids.push_back(6);
    request.session = SessionId("s");
    request.tenant_salt = history.tenant_salt;
    request.cache = history.cache;
    return request;
  }
  static int32_t Active(EngineCore& core) {
    int32_t active = 0;
    for (const auto& pool : core.state().pools) active += pool->Counts().active;
    return active;
  }

  HashBackendOptions backend;
  std::shared_ptr<HashBackendControl> control = std::make_shared<HashBackendControl>();
  SimulatedClock clock;
};

TEST_F(SessionCopiesTest, TheNextTurnElsewhereFindsAllAndAnswersTheSame) {
  for (const int64_t prompt : {3, 15, 16, 17, 40, 150}) {
    auto from = MakeCore();
    const GenerateRequest turn = Turn(prompt, 9);
    const SessionHistory history = HistoryOf(turn, Run(*from, turn)->ids);
    auto to = MakeCore();
    // All but the answer's last token, whose KV nobody needed yet.
    EXPECT_EQ(PutIn(*to, history, TakeOut(*from, history)), prompt + 8);
    EXPECT_EQ(Active(*from), 0);
    EXPECT_EQ(Active(*to), 0);
    const auto stayed = Run(*from, Next(history));
    const auto moved = Run(*to, Next(history));
    EXPECT_EQ(moved->ids, stayed->ids);
    EXPECT_EQ(moved->ids, ByDefinition(backend, Next(history)));
    EXPECT_EQ(moved->finished->cached_tokens, prompt + 8);
    EXPECT_EQ(moved->finished->cached_tokens, stayed->finished->cached_tokens);
  }
}

TEST_F(SessionCopiesTest, WindowsSinksAndFormatsMoveToo) {
  backend.windows = {0, 48};
  backend.formats = {KvFormat::kF16, KvFormat::kQ8};
  for (const KvFormat format : backend.formats) {
    for (const cache_manager::AttentionSpan span :
         {cache_manager::AttentionSpan{}, {40, 0}, {64, 20}}) {
      auto from = MakeCore();
      GenerateRequest turn = Turn(200, 9);
      turn.cache = {.attention = span, .kv_format = format};
      const SessionHistory history = HistoryOf(turn, Run(*from, turn)->ids);
      const MovedBlocks moved = TakeOut(*from, history);
      EXPECT_LT(moved.places.size(), 2u * 13u);  // blocks behind a window stay behind
      auto to = MakeCore();
      EXPECT_EQ(PutIn(*to, history, moved), 208);
      const auto answer = Run(*to, Next(history));
      EXPECT_EQ(answer->ids, ByDefinition(backend, Next(history)));
      EXPECT_EQ(answer->finished->cached_tokens, 208);
    }
  }
}

TEST_F(SessionCopiesTest, WhatOthersLeftInAnUnfilledBlockStaysHere) {
  auto core = MakeCore();
  // Another's 16 tokens fill the block that the session then takes for 3.
  backend.num_blocks = 4;
  core = MakeCore();
  GenerateRequest other = RequestOf("o", Ids(62, 9), 1);
  other.tenant_salt = "another";
  Run(*core, other);
  const GenerateRequest turn = Turn(18, 1);
  const SessionHistory history = HistoryOf(turn, Run(*core, turn)->ids);
  const MovedBlocks moved = TakeOut(*core, history);
  ASSERT_EQ(moved.tokens, 18);
  ASSERT_EQ(moved.bytes.size(), 2u);
  for (size_t slot = 0; slot < 16; ++slot) {
    uint64_t value = 0;
    std::memcpy(&value, moved.bytes[1].data() + 8 * slot, 8);
    EXPECT_EQ(value == 0, slot >= 2) << slot;
  }
}

TEST_F(SessionCopiesTest, NothingIsNamedBeforeTheCommitNorAfterAnEnd) {
  auto from = MakeCore();
  const GenerateRequest turn = Turn(40, 9);
  const SessionHistory history = HistoryOf(turn, Run(*from, turn)->ids);
  const MovedBlocks moved = TakeOut(*from, history);
  auto to = MakeCore();
  SessionCopies& copies = to->state().copies;
  const auto id = copies.BeginImport(ImportOf(*to, history, moved));
  ASSERT_TRUE(id.ok());
  for (size_t i = 0; i < moved.places.size(); ++i) {
    ASSERT_TRUE(copies.Write(*id, moved.places[i], moved.bytes[i]).ok());
  }
  EXPECT_EQ(Run(*to, Next(history))->finished->cached_tokens, 0);
  copies.End(*id);
  copies.End(*id);
  EXPECT_EQ(Active(*to), 0);
  EXPECT_EQ(to->state().sessions.Chain(SessionId("t"), 0).size(), 0u);
}

TEST_F(SessionCopiesTest, BlocksGetTheNamesOfTheirTokensUnderThisTenantsSaltOnly) {
  auto from = MakeCore();
  const GenerateRequest turn = Turn(40, 9);
  const SessionHistory history = HistoryOf(turn, Run(*from, turn)->ids);
  const MovedBlocks moved = TakeOut(*from, history);
  auto to = MakeCore();
  EXPECT_EQ(PutIn(*to, history, moved), 48);
  // The books show the session with its chain.
  EXPECT_EQ(to->state().sessions.Chain(SessionId("s"), 0).size(), 3u);
  GenerateRequest other = Next(history);
  other.tenant_salt = "another";
  EXPECT_EQ(Run(*to, other)->finished->cached_tokens, 0);
}

TEST_F(SessionCopiesTest, BlocksThatAreThereAlreadyAreKept) {
  auto core = MakeCore();
  const GenerateRequest turn = Turn(40, 9);
  const SessionHistory history = HistoryOf(turn, Run(*core, turn)->ids);
  MovedBlocks moved = TakeOut(*core, history);
  const int32_t cached = core->state().pools[0]->Counts().cached;
  for (auto& bytes : moved.bytes) bytes.assign(bytes.size(), std::byte{7});  // would change answers
  EXPECT_EQ(PutIn(*core, history, moved), 48);
  EXPECT_EQ(core->state().pools[0]->Counts().cached, cached);
  EXPECT_EQ(Run(*core, Next(history))->ids, ByDefinition(backend, Next(history)));
}

TEST_F(SessionCopiesTest, AnImportThatContradictsItselfIsRefusedWithTheField) {
  auto core = MakeCore();
  SessionHistory history = HistoryOf(Turn(40, 9), {});
  SessionCopies& copies = core->state().copies;
  const auto refused = [&](SessionImport import) {
    const absl::Status status = copies.BeginImport(std::move(import)).status();
    EXPECT_FALSE(status.ok());
    return DetailsOf(status).field;
  };
  EXPECT_EQ(refused({history, 41, {3}}), "blocks.tokens");
  EXPECT_EQ(refused({history, -1, {3}}), "blocks.tokens");
  EXPECT_EQ(refused({history, 40, {}}), "blocks.groups");
  EXPECT_EQ(refused({history, 40, {4}}), "blocks.groups");
  EXPECT_EQ(refused({history, 40, {-1}}), "blocks.groups");
  SessionHistory none = history;
  none.cache.allocation = Allocation::kNone;
  EXPECT_EQ(refused({none, 40, {3}}), "cache.allocation");
  SessionHistory q8 = history;
  q8.cache.kv_format = KvFormat::kQ8;
  EXPECT_EQ(refused({q8, 40, {3}}), "kv_format");
  EXPECT_EQ(DetailsOf(copies.BeginExport(q8).status()).field, "kv_format");

  const std::vector<std::byte> bytes(16 * 8);
  const auto id = copies.BeginImport({history, 40, {3}});
  ASSERT_TRUE(id.ok());
  for (const BlockPlace& place :
       {BlockPlace{0, 1}, BlockPlace{0, -1}, BlockPlace{1, 0}, BlockPlace{-1, 0}, BlockPlace{0, 3},
        BlockPlace{0, int64_t{1} << 40}, BlockPlace{0, int64_t{1} << 60}}) {
    EXPECT_EQ(DetailsOf(copies.Write(*id, place, bytes)).field, "records.place") << place.index;
  }
  ASSERT_TRUE(copies.Write(*id, {0, 0}, bytes).ok());
  EXPECT_FALSE(copies.Write(*id, {0, 0}, bytes).ok());
  EXPECT_FALSE(copies.Write(*id, {0, 2}, bytes).ok());
  EXPECT_EQ(DetailsOf(copies.Commit(*id, 100).status()).field, "records");
  copies.End(*id);
  const auto small = copies.BeginImport({history, 40, {1}});
  ASSERT_TRUE(small.ok());
  ASSERT_TRUE(copies.Write(*small, {0, 0}, bytes).ok());
  EXPECT_EQ(DetailsOf(copies.Write(*small, {0, 1}, bytes)).field, "records");
  copies.End(*small);
  EXPECT_EQ(Active(*core), 0);
}

TEST_F(SessionCopiesTest, WithoutRoomNothingChanges) {
  backend.num_blocks = 8;
  auto core = MakeCore();
  Run(*core, Turn(120, 1));
  SessionCopies& copies = core->state().copies;
  const SessionHistory history = HistoryOf(RequestOf("x", Ids(100, 8), 1), {});
  const absl::Status refused = copies.BeginImport({history, 80, {5}}).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(refused.message().find("at most 4"), absl::string_view::npos) << refused;
  EXPECT_EQ(core->state().pools[0]->Counts().cached, 8);
  EXPECT_TRUE(copies.BeginImport({history, 64, {4}}).ok());
}

// Blocks of a copy cannot be preempted: whoever brings or takes them slowly, or announces some and
// sends none, must not stop what runs.
TEST_F(SessionCopiesTest, AllImportsTogetherLeaveOthersHalfOfThePool) {
  backend.num_blocks = 8;
  auto core = MakeCore();
  SessionCopies& copies = core->state().copies;
  const SessionHistory history = HistoryOf(RequestOf("x", Ids(100, 8), 1), {});
  const std::vector<std::byte> bytes(16 * 8);
  const auto first = copies.BeginImport({history, 48, {3}});
  ASSERT_TRUE(first.ok());
  const absl::Status second = copies.BeginImport({history, 64, {4}}).status();
  EXPECT_EQ(second.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(DetailsOf(second).reason, ErrorReason::kOverload);
  for (int64_t b = 0; b < 3; ++b) ASSERT_TRUE(copies.Write(*first, {0, b}, bytes).ok());
  EXPECT_EQ(copies.BeginImport({history, 32, {2}}).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(Run(*core, Turn(60, 4))->ids, ByDefinition(backend, Turn(60, 4)));
  // A static request's promise is of the same half.
  GenerateRequest promised = Turn(30, 2);
  promised.id = RequestId("p");
  promised.cache.allocation = Allocation::kStatic;
  copies.End(*first);
  EXPECT_EQ(Run(*core, promised)->ids, ByDefinition(backend, promised));
  EXPECT_TRUE(copies.BeginImport({history, 64, {4}}).ok());
}

TEST_F(SessionCopiesTest, AllExportsTogetherLeaveOthersHalfOfThePool) {
  backend.num_blocks = 8;
  auto core = MakeCore();
  const GenerateRequest turn = Turn(115, 5);
  const SessionHistory history = HistoryOf(turn, Run(*core, turn)->ids);
  SessionCopies& copies = core->state().copies;
  const auto out = copies.BeginExport(history);
  ASSERT_TRUE(out.ok()) << out.status();
  EXPECT_EQ(out->tokens, 64);  // of 119
  EXPECT_EQ(Active(*core), 4);
  const absl::Status second = copies.BeginExport(history).status();
  EXPECT_EQ(second.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(DetailsOf(second).reason, ErrorReason::kOverload);
  EXPECT_EQ(Active(*core), 4);
  GenerateRequest other = RequestOf("o", Ids(60, 9), 4);
  other.tenant_salt = "another";
  EXPECT_EQ(Run(*core, other)->ids, ByDefinition(backend, other));
  copies.End(out->id);
  EXPECT_EQ(TakeOut(*core, history).tokens, 64);
}

TEST_F(SessionCopiesTest, OneCopyTooManyWaits) {
  auto core = MakeCore();
  SessionCopies& copies = core->state().copies;
  const SessionHistory history = HistoryOf(Turn(40, 9), {});
  std::vector<uint64_t> ids;
  for (size_t i = 0; i < kMaxSessionCopies; ++i) ids.push_back(copies.BeginExport(history)->id);
  const absl::Status refused = copies.BeginExport(history).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(DetailsOf(refused).reason, ErrorReason::kOverload);
  EXPECT_FALSE(copies.BeginImport({history, 40, {3}}).ok());
  copies.End(ids[1]);
  EXPECT_TRUE(copies.BeginExport(history).ok());
}

TEST_F(SessionCopiesTest, ACoreThatGoesTakesItsCopiesWithIt) {
  auto core = MakeCore();
  const GenerateRequest turn = Turn(40, 9);
  const SessionHistory history = HistoryOf(turn, Run(*core, turn)->ids);
  ASSERT_TRUE(core->state().copies.BeginExport(history).ok());
  EXPECT_GT(Active(*core), 0);
  core.reset();
}

TEST_F(SessionCopiesTest, ASessionWithoutACacheHasNoBlocks) {
  auto core = MakeCore();
  GenerateRequest turn = Turn(40, 9);
  SessionHistory history = HistoryOf(turn, Run(*core, turn)->ids);
  history.cache.allocation = Allocation::kNone;
  EXPECT_EQ(TakeOut(*core, history).tokens, 0);
  history.tokens.clear();
  history.cache.allocation = Allocation::kPaged;
  EXPECT_EQ(TakeOut(*core, history).tokens, 0);
}

}  // namespace
}  // namespace kvist::worker
