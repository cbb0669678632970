// Sessions as files between clusters of all three roles: what a client sees.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "services/frontend/limits.h"
#include "tests/integration/roles_fixture.h"
#include "tests/support/temp_folder.h"
#include "worker/kv/session_file.h"

namespace kvist::services {
namespace {

using absl::StatusCode;
using ::testing::HasSubstr;

struct SavedSession {
  absl::Status status;
  v1::SessionFileFacts facts;
  std::string bytes;
};

SavedSession Save(Client& client, const std::string& id) {
  SavedSession saved;
  saved.status = client.ExportSession(
      id, {.on_facts = [&](const v1::SessionFileFacts& facts) { saved.facts = facts; },
           .on_data =
               [&](const std::string& data) {
                 EXPECT_LE(data.size(), kMaxSessionFileMessage);
                 saved.bytes += data;
                 return true;
               }});
  return saved;
}

absl::StatusOr<v1::ImportSessionResponse> Restore(Client& client, const std::string& bytes,
                                                  const std::string& id = "", size_t piece = 3000) {
  size_t at = 0;
  return client.ImportSession(id, {.next_data = [&](std::string* data) {
                                *data = bytes.substr(std::min(at, bytes.size()), piece);
                                at += data->size();
                              }});
}

RoleClusterOptions WithDisk(const TempFolder& folder) {
  return {.unlike = [path = folder.path()](size_t, worker::HashBackendOptions*,
                                           WorkerServerOptions* options) {
    options->offload_directory = path;
    options->offload_bytes = 1 << 20;
  }};
}

class SessionFilesTest : public RolesTest {
 protected:
  explicit SessionFilesTest(const RoleClusterOptions& options = {}) : RolesTest(options) {
    CreateSession("s");
  }

  SavedSession SaveAfterTurn(size_t prompt = 100) {
    Generated first;
    EXPECT_TRUE(Generate(InSession(IdsRequest(RandomIds(prompt, 1), 30), "s"), &first).ok());
    const SavedSession saved = Save(*client_, "s");
    EXPECT_TRUE(saved.status.ok()) << saved.status;
    return saved;
  }
  static Generated NextTurn(Client& client, const std::string& session) {
    Generated next;
    const absl::Status status =
        client.Generate(InSession(IdsRequest(RandomIds(7, 2), 20), session), {}, &next);
    EXPECT_TRUE(status.ok()) << status;
    return next;
  }
  static bool Has(Client& client, const std::string& id) {
    v1::GetSessionRequest get;
    get.set_id(id);
    return client.GetSession(get).ok();
  }
};

TEST_F(SessionFilesTest, AnotherServerGoesOnAsIfNothingHadMoved) {
  const SavedSession saved = SaveAfterTurn();
  EXPECT_EQ(saved.facts.file_bytes(), static_cast<int64_t>(saved.bytes.size()));
  EXPECT_EQ(saved.facts.history_tokens(), 130);
  EXPECT_EQ(saved.facts.cached_tokens(), 129);
  EXPECT_EQ(saved.facts.blocks(), 9);
  EXPECT_EQ(saved.facts.note(), "");
  RoleCluster other({.workers = 2});
  const auto client = other.Connect();
  const auto restored = Restore(*client, saved.bytes);
  ASSERT_TRUE(restored.ok()) << restored.status();
  EXPECT_EQ(restored->session().id(), "s");
  EXPECT_EQ(restored->session().history_tokens(), 130);
  EXPECT_EQ(restored->session().turns(), 1u);
  EXPECT_EQ(restored->blocks(), 9);
  EXPECT_EQ(restored->cached_tokens(), 129);
  EXPECT_EQ(restored->note(), "");
  // The books show it before any turn.
  EXPECT_TRUE(RoleCluster::Until([&] {
    const auto memory = client->SessionMemoryOf("s");
    return memory.ok() && memory->size() == 1 && memory->at(0).blocks() == 8;
  }));
  const Generated stayed = NextTurn(*client_, "s");
  const Generated moved = NextTurn(*client, "s");
  EXPECT_EQ(IdsOf(moved), IdsOf(stayed));
  EXPECT_EQ(moved.text, stayed.text);
  EXPECT_EQ(moved.finished.usage().cached_tokens(), 129);
  EXPECT_EQ(stayed.finished.usage().cached_tokens(), 129);
}

TEST_F(SessionFilesTest, TheSameServerTakesItUnderAnotherId) {
  const SavedSession saved = SaveAfterTurn(5);
  const auto taken = Restore(*client_, saved.bytes);
  EXPECT_EQ(taken.status().code(), StatusCode::kAlreadyExists) << taken.status();
  EXPECT_EQ(DetailsOf(taken.status()).field, "id");
  const auto restored = Restore(*client_, saved.bytes, "t", 1);
  ASSERT_TRUE(restored.ok()) << restored.status();
  EXPECT_EQ(restored->session().id(), "t");
  EXPECT_EQ(IdsOf(NextTurn(*client_, "t")), IdsOf(NextTurn(*client_, "s")));
}

TEST_F(SessionFilesTest, ADeletedSessionComesBack) {
  const SavedSession saved = SaveAfterTurn();
  const Generated stayed = NextTurn(*client_, "s");
  ASSERT_TRUE(client_->DeleteSession("s").ok());
  const auto restored = Restore(*client_, saved.bytes);
  ASSERT_TRUE(restored.ok()) << restored.status();
  EXPECT_EQ(IdsOf(NextTurn(*client_, "s")), IdsOf(stayed));
}

TEST_F(SessionFilesTest, ASessionWithoutAHistoryIsAFileToo) {
  const SavedSession saved = Save(*client_, "s");
  ASSERT_TRUE(saved.status.ok()) << saved.status;
  EXPECT_EQ(saved.facts.blocks(), 0);
  EXPECT_THAT(saved.facts.note(), HasSubstr("no history"));
  const auto restored = Restore(*client_, saved.bytes, "t");
  ASSERT_TRUE(restored.ok()) << restored.status();
  EXPECT_EQ(restored->session().history_tokens(), 0);
  EXPECT_EQ(restored->note(), "");
}

TEST_F(SessionFilesTest, UnknownSessionsAndImpossibleIdsAreRefused) {
  EXPECT_EQ(Save(*client_, "never").status.code(), StatusCode::kNotFound);
  EXPECT_EQ(DetailsOf(Save(*client_, "../etc").status).field, "id");
  const SavedSession saved = SaveAfterTurn();
  EXPECT_EQ(DetailsOf(Restore(*client_, saved.bytes, "../etc").status()).field, "id");
  EXPECT_FALSE(Restore(*client_, saved.bytes, "implicit-x").ok());
}

TEST_F(SessionFilesTest, DamagedFilesAreRefusedAndNothingIsKept) {
  const SavedSession saved = SaveAfterTurn();
  RoleCluster other;
  const auto client = other.Connect();
  const size_t size = saved.bytes.size();
  for (const size_t at : {size_t{0}, size_t{9}, size_t{13}, size_t{20}, size_t{100}, size / 2,
                          size - 70, size - 40}) {
    std::string damaged = saved.bytes;
    damaged[at] = static_cast<char>(damaged[at] ^ 4);
    const auto restored = Restore(*client, damaged);
    EXPECT_FALSE(restored.ok()) << at;
    EXPECT_FALSE(Has(*client, "s")) << at;
  }
  for (const size_t kept : {size_t{0}, size_t{10}, size_t{200}, size / 2, size - 1}) {
    const auto restored = Restore(*client, saved.bytes.substr(0, kept));
    EXPECT_EQ(restored.status().code(), StatusCode::kDataLoss) << kept << restored.status();
    EXPECT_EQ(DetailsOf(restored.status()).field, "file_bytes");
  }
  EXPECT_FALSE(Restore(*client, saved.bytes + "x").ok());
  EXPECT_FALSE(Has(*client, "s"));
  // No block of any of them stayed.
  EXPECT_EQ(client->GetStats()->blocks(), 0);
  const auto restored = Restore(*client, saved.bytes);
  ASSERT_TRUE(restored.ok()) << restored.status();
  EXPECT_EQ(restored->cached_tokens(), 129);
}

TEST_F(SessionFilesTest, AnotherModelsFileIsRefusedWithBothNames) {
  const SavedSession saved = SaveAfterTurn();
  RoleClusterOptions options;
  options.backend.fingerprint = "another-model";
  RoleCluster other(options);
  const auto restored = Restore(*other.Connect(), saved.bytes);
  EXPECT_EQ(restored.status().code(), StatusCode::kFailedPrecondition) << restored.status();
  EXPECT_EQ(DetailsOf(restored.status()).field, "model_fingerprint");
  EXPECT_THAT(std::string(restored.status().message()), HasSubstr("hash-model"));
}

// The history comes, the blocks do not, and the answer is the same.
TEST_F(SessionFilesTest, BlocksThatCannotBeUsedAreLeftOutAndTheReasonIsTold) {
  const SavedSession saved = SaveAfterTurn();
  const Generated stayed = NextTurn(*client_, "s");
  struct Row {
    const char* note;
    RoleClusterOptions options;
  };
  std::vector<Row> rows(5);
  rows[0].note = "numerics id hash/1, here it is hash/2";
  rows[0].options.backend.numerics_id = "hash/2";
  rows[1].note = "block size 16, here it is 32";
  rows[1].options.backend.block_tokens = 32;
  rows[2].note = "sealed under another cluster secret";
  rows[2].options.cluster_secret = "secret";
  rows[3].note = "sealed under another cluster secret";
  rows[3].options.cluster_secret = "";
  rows[4].note = "holds 4 blocks";
  rows[4].options.num_blocks = 4;
  for (const Row& row : rows) {
    RoleCluster other(row.options);
    const auto client = other.Connect();
    const auto restored = Restore(*client, saved.bytes);
    ASSERT_TRUE(restored.ok()) << restored.status();
    EXPECT_THAT(restored->note(), HasSubstr(row.note));
    EXPECT_EQ(restored->blocks(), 0) << row.note;
    EXPECT_EQ(restored->cached_tokens(), 0) << row.note;
    EXPECT_EQ(restored->session().history_tokens(), 130) << row.note;
    EXPECT_EQ(client->GetStats()->blocks(), 0) << row.note;
    if (row.options.num_blocks == 4) continue;  // too small for the turn, too
    const Generated moved = NextTurn(*client, "s");
    EXPECT_EQ(IdsOf(moved), IdsOf(stayed)) << row.note;
    EXPECT_EQ(moved.finished.usage().cached_tokens(), 0) << row.note;
  }
}

TEST_F(SessionFilesTest, AFormatThatIsNotServedGivesWayToTheDefault) {
  RoleClusterOptions options;
  options.backend.formats = {worker::KvFormat::kQ8, worker::KvFormat::kF16};
  RoleCluster source(options);
  const auto from = source.Connect();
  v1::CreateSessionRequest create;
  create.set_id("q");
  create.mutable_cache()->set_kv_format("q8");
  ASSERT_TRUE(from->CreateSession(create).ok());
  Generated first;
  ASSERT_TRUE(from->Generate(InSession(IdsRequest(RandomIds(50, 1), 9), "q"), {}, &first).ok());
  const SavedSession saved = Save(*from, "q");
  EXPECT_EQ(saved.facts.cached_tokens(), 58);
  const auto restored = Restore(*client_, saved.bytes);
  ASSERT_TRUE(restored.ok()) << restored.status();
  EXPECT_THAT(restored->note(), HasSubstr("q8, which is not served here"));
  EXPECT_THAT(restored->note(), HasSubstr("KV format q8, here it is f16"));
  EXPECT_EQ(restored->session().cache().kv_format(), "");
  NextTurn(*client_, "q");
}

// Where it was saved, all of it was served.
TEST_F(SessionFilesTest, WhatIsNotServedOfWhatASessionAskedOfItsCacheIsLeftOut) {
  TempFolder disk;
  RoleCluster source(WithDisk(disk));
  const auto from = source.Connect();
  v1::CreateSessionRequest create;
  create.set_id("d");
  create.mutable_cache()->set_offload(v1::CacheParams::DISK);
  create.mutable_cache()->mutable_attention()->set_window_tokens(1024);
  ASSERT_TRUE(from->CreateSession(create).ok());
  Generated first;
  ASSERT_TRUE(from->Generate(InSession(IdsRequest(RandomIds(50, 1), 9), "d"), {}, &first).ok());
  const SavedSession saved = Save(*from, "d");
  RoleCluster smaller({.unlike = [](size_t, worker::HashBackendOptions* backend,
                                    WorkerServerOptions*) { backend->context_tokens = 512; }});
  const auto client = smaller.Connect();
  const auto restored = Restore(*client, saved.bytes);
  ASSERT_TRUE(restored.ok()) << restored.status();
  EXPECT_THAT(restored->note(), HasSubstr("offload to disk, which is not served here"));
  EXPECT_THAT(restored->note(), HasSubstr("a window of 1024 tokens, here the context holds 512"));
  EXPECT_EQ(restored->blocks(), 0);
  EXPECT_FALSE(restored->session().cache().has_attention());
  EXPECT_EQ(IdsOf(NextTurn(*client, "d")), IdsOf(NextTurn(*from, "d")));  // it saw all there, too
}

TEST_F(SessionFilesTest, WhatASessionAskedOfItsCacheComesBack) {
  TempFolder disk;
  RoleCluster cluster(WithDisk(disk));
  const auto client = cluster.Connect();
  v1::CreateSessionRequest create;
  create.set_id("all");
  create.mutable_cache()->set_allocation(v1::CacheParams::STATIC);
  create.mutable_cache()->set_kv_format("f16");
  create.mutable_cache()->set_offload(v1::CacheParams::DISK);
  create.mutable_cache()->mutable_attention()->set_window_tokens(64);
  create.mutable_cache()->mutable_attention()->set_sink_tokens(4);
  ASSERT_TRUE(client->CreateSession(create).ok());
  const SavedSession saved = Save(*client, "all");
  ASSERT_TRUE(saved.status.ok()) << saved.status;
  const auto restored = Restore(*client, saved.bytes, "t");
  ASSERT_TRUE(restored.ok()) << restored.status();
  EXPECT_EQ(restored->session().cache().SerializeAsString(), create.cache().SerializeAsString());
  Generated turn;
  EXPECT_TRUE(client->Generate(InSession(IdsRequest(RandomIds(9, 1), 9), "t"), {}, &turn).ok());
}

TEST_F(SessionFilesTest, OneSecretOrTrustOpensTheSeal) {
  RoleClusterOptions secret;
  secret.cluster_secret = "secret";
  RoleCluster source(secret);
  const auto from = source.Connect();
  v1::CreateSessionRequest create;
  create.set_id("x");
  ASSERT_TRUE(from->CreateSession(create).ok());
  Generated first;
  ASSERT_TRUE(from->Generate(InSession(IdsRequest(RandomIds(50, 1), 9), "x"), {}, &first).ok());
  const SavedSession saved = Save(*from, "x");
  RoleCluster sister(secret);
  EXPECT_EQ(Restore(*sister.Connect(), saved.bytes)->cached_tokens(), 58);
  RoleClusterOptions trusting;
  trusting.cluster_secret = "another";
  trusting.trust_snapshots = true;
  RoleCluster stranger(trusting);
  const auto client = stranger.Connect();
  EXPECT_EQ(Restore(*client, saved.bytes)->cached_tokens(), 58);
  EXPECT_EQ(IdsOf(NextTurn(*client, "x")), IdsOf(NextTurn(*from, "x")));
}

// Right in form and checksum, and sealed by nobody who may: KV bytes under the tokens of others.
// Without a secret nobody may but the server itself, while it runs.
TEST_F(SessionFilesTest, ForgedBlocksReachNobody) {
  const SavedSession saved = SaveAfterTurn();
  const std::string body =
      saved.bytes.substr(0, saved.bytes.size() - worker::kSessionFileTrailerBytes);
  RoleCluster other;
  RoleClusterOptions no_secret;
  no_secret.cluster_secret = "";
  RoleCluster open(no_secret);
  RoleCluster as_open(no_secret);
  for (const char* guess : {"", "a guess", "kvist development secret"}) {
    worker::SessionFileChecksum checksum;
    checksum.Add(std::as_bytes(std::span(body.data(), body.size())));
    const std::string forged =
        body + worker::SessionFileTrailer(checksum.Finish(), worker::SessionSealKey(guess));
    for (const RoleCluster* cluster : {&other, &open}) {
      const auto client = cluster->Connect();
      const auto restored = Restore(*client, forged, absl::StrCat("f", std::strlen(guess)));
      ASSERT_TRUE(restored.ok()) << restored.status();
      EXPECT_THAT(restored->note(), HasSubstr("not believed")) << guess;
      EXPECT_EQ(client->GetStats()->blocks(), 0) << guess;
    }
  }
  const auto client = open.Connect();
  NextTurn(*client, "f0");
  const SavedSession own = Save(*client, "f0");
  EXPECT_EQ(Restore(*client, own.bytes, "own")->note(), "");
  EXPECT_EQ(Restore(*as_open.Connect(), own.bytes)->blocks(), 0);
}

TEST_F(SessionFilesTest, AsManyAsMayRunAtOnceAndOneMore) {
  const SavedSession saved = SaveAfterTurn();
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientWriter<v1::ImportSessionRequest>>> writers;
  std::vector<v1::ImportSessionResponse> responses(kMaxSessionFilesAtOnce);
  const auto stub = v1::Sessions::NewStub(cluster_.frontend->server().InProcessChannel());
  for (int32_t i = 0; i < kMaxSessionFilesAtOnce; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    writers.push_back(stub->Import(contexts.back().get(), &responses[static_cast<size_t>(i)]));
    v1::ImportSessionRequest start;
    start.mutable_start();
    ASSERT_TRUE(writers.back()->Write(start));
  }
  EXPECT_TRUE(RoleCluster::Until([&] {
    const SavedSession refused = Save(*client_, "s");
    return DetailsOf(refused.status).reason == ErrorReason::kOverload;
  }));
  for (auto& context : contexts) context->TryCancel();
  for (auto& writer : writers) writer->Finish();
  EXPECT_TRUE(RoleCluster::Until([&] { return Save(*client_, "s").status.ok(); }));
}

}  // namespace
}  // namespace kvist::services
