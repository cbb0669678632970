// ExportSession and ImportSession between two workers over real gRPC.
#include "services/worker/session_transfer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "common/base/status.h"
#include "services/worker/limits.h"
#include "tests/support/role_fixture.h"
#include "worker/kv/block_file.h"
#include "worker/kv/session_file.h"

namespace kvist::services {
namespace {

using absl::StatusCode;
using ::testing::HasSubstr;

struct Exported {
  absl::Status status;
  v1::SessionBlocks blocks;
  std::string records;
};

Exported Export(v1::Worker::Stub& stub, const v1::SessionHistory& history,
                uint64_t incarnation = 0) {
  grpc::ClientContext context;
  context.set_wait_for_ready(true);
  v1::WorkerExportRequest request;
  *request.mutable_history() = history;
  request.set_expected_incarnation(incarnation);
  const auto reader = stub.ExportSession(&context, request);
  Exported result;
  v1::WorkerExportResponse response;
  while (reader->Read(&response)) {
    if (response.has_blocks()) result.blocks = response.blocks();
    EXPECT_LE(response.records().size(), kMaxSessionRecordsMessage);
    result.records += response.records();
  }
  result.status = FromGrpc(reader->Finish(), context);
  return result;
}

struct Imported {
  absl::Status status;
  bool ready = false;
  v1::WorkerImportResponse last;
};

Imported Import(v1::Worker::Stub& stub, const v1::WorkerImportRequest& head,
                const std::string& records, bool commit = true, size_t piece = 1000) {
  grpc::ClientContext context;
  context.set_wait_for_ready(true);
  const auto stream = stub.ImportSession(&context);
  bool open = stream->Write(head);
  for (size_t at = 0; open && at < records.size(); at += piece) {
    v1::WorkerImportRequest message;
    message.set_records(records.substr(at, piece));
    open = stream->Write(message);
  }
  Imported result;
  if (commit && stream->Read(&result.last)) {
    result.ready = result.last.ready();
    v1::WorkerImportRequest message;
    message.set_commit(true);
    if (stream->Write(message)) stream->Read(&result.last);
  }
  stream->WritesDone();
  for (v1::WorkerImportResponse rest; stream->Read(&rest);) continue;
  result.status = FromGrpc(stream->Finish(), context);
  return result;
}

class SessionTransferTest : public ::testing::Test {
 protected:
  SessionTransferTest() {
    backend_.context_tokens = 512;
    from_ = StartWorker(backend_);
    to_ = StartWorker(backend_);
  }

  // A turn on `from_`; what names its blocks.
  v1::SessionHistory RunTurn(size_t prompt) {
    v1::WorkerGenerateRequest request = MakeRequest("r", Prompt(1, prompt), 9);
    request.set_session_id("s");
    const Generated generated = Generate(*from_.stub, request);
    EXPECT_TRUE(generated.status.ok()) << generated.status;
    v1::SessionHistory history;
    history.set_session_id("s");
    history.set_tenant_id("default");
    history.set_tenant_salt(request.tenant_salt());
    *history.mutable_ids() = request.prompt_ids();
    history.mutable_ids()->Add(generated.ids.begin(), generated.ids.end());
    return history;
  }
  static v1::WorkerImportRequest Head(const v1::SessionHistory& history,
                                      const v1::SessionBlocks& blocks) {
    v1::WorkerImportRequest head;
    *head.mutable_head()->mutable_history() = history;
    *head.mutable_head()->mutable_blocks() = blocks;
    return head;
  }
  static Generated NextTurn(TestWorker& worker, const v1::SessionHistory& history) {
    v1::WorkerGenerateRequest request =
        MakeRequest("n", {history.ids().begin(), history.ids().end()}, 20);
    request.add_prompt_ids(3);
    request.set_tenant_salt(history.tenant_salt());
    return Generate(*worker.stub, request);
  }
  static void ExpectNothingKept(TestWorker& worker) {
    EXPECT_TRUE(BlocksOfPool(worker.server->engine()).empty());
    EXPECT_TRUE(WaitFor([&] {
      int32_t active = 0;
      worker.server->engine().RunBetweenSteps([&](worker::EngineState& state) {
        for (const auto& pool : state.pools) active += pool->Counts().active;
      });
      return active == 0;
    }));
  }

  worker::HashBackendOptions backend_;
  TestWorker from_;
  TestWorker to_;
};

TEST_F(SessionTransferTest, TheNextTurnOnAnotherWorkerFindsAllAndAnswersTheSame) {
  for (const size_t prompt : {5u, 100u}) {
    const v1::SessionHistory history = RunTurn(prompt);
    const Exported out = Export(*from_.stub, history);
    ASSERT_TRUE(out.status.ok()) << out.status;
    EXPECT_EQ(out.blocks.tokens(), static_cast<int64_t>(prompt) + 8);
    const Imported in = Import(*to_.stub, Head(history, out.blocks), out.records);
    ASSERT_TRUE(in.status.ok()) << in.status;
    EXPECT_EQ(in.last.blocks(), out.blocks.groups(0).blocks());
    EXPECT_EQ(in.last.cached_tokens(), out.blocks.tokens());
    const Generated stayed = NextTurn(from_, history);
    const Generated moved = NextTurn(to_, history);
    EXPECT_EQ(moved.ids, stayed.ids);
    EXPECT_EQ(moved.finished.usage().cached_tokens(), out.blocks.tokens());
  }
}

TEST_F(SessionTransferTest, RunningRequestsGoOnMeanwhile) {
  const v1::SessionHistory history = RunTurn(200);
  const std::vector<int32_t> alone = Generate(*to_.stub, MakeRequest("a", Prompt(3, 50), 200)).ids;
  Generated other;
  std::thread busy([&] { other = Generate(*from_.stub, MakeRequest("a", Prompt(3, 50), 200)); });
  for (int i = 0; i < 20; ++i) {
    const Exported out = Export(*from_.stub, history);
    EXPECT_TRUE(out.status.ok()) << out.status;
    EXPECT_EQ(out.blocks.tokens(), 208);
  }
  busy.join();
  EXPECT_EQ(other.ids, alone);
}

TEST_F(SessionTransferTest, WithoutACommitNothingIsKept) {
  const v1::SessionHistory history = RunTurn(100);
  const Exported out = Export(*from_.stub, history);
  EXPECT_EQ(
      Import(*to_.stub, Head(history, out.blocks), out.records, /*commit=*/false).status.code(),
      StatusCode::kCancelled);
  ExpectNothingKept(to_);
  // Cut off within a record.
  EXPECT_EQ(
      Import(*to_.stub, Head(history, out.blocks), out.records.substr(0, 900), false).status.code(),
      StatusCode::kCancelled);
  ExpectNothingKept(to_);
}

TEST_F(SessionTransferTest, WrongHeadsAreRefusedWithTheirField) {
  const v1::SessionHistory history = RunTurn(100);
  const Exported out = Export(*from_.stub, history);
  struct Row {
    std::string field;
    StatusCode code;
    std::function<void(v1::WorkerImportHead&)> change;
  };
  using H = v1::WorkerImportHead;
  const auto blocks = [](H& h) { return h.mutable_blocks(); };
  const std::vector<Row> rows = {
      {"session_id", StatusCode::kInvalidArgument,
       [](H& h) { h.mutable_history()->set_session_id("a/b"); }},
      {"tenant_salt", StatusCode::kInvalidArgument,
       [](H& h) { h.mutable_history()->set_tenant_salt("short"); }},
      {"ids", StatusCode::kInvalidArgument, [](H& h) { h.mutable_history()->add_ids(64); }},
      {"ids", StatusCode::kInvalidArgument, [](H& h) { h.mutable_history()->add_ids(-1); }},
      {"cache.kv_format", StatusCode::kInvalidArgument,
       [](H& h) { h.mutable_history()->mutable_cache()->set_kv_format("q3"); }},
      {"blocks.kv_format", StatusCode::kInvalidArgument,
       [&](H& h) { blocks(h)->set_kv_format("q8"); }},
      {"numerics_id", StatusCode::kFailedPrecondition,
       [&](H& h) { blocks(h)->set_numerics_id("hash/2"); }},
      {"block_tokens", StatusCode::kFailedPrecondition,
       [&](H& h) { blocks(h)->set_block_tokens(32); }},
      {"blocks.tokens", StatusCode::kInvalidArgument, [&](H& h) { blocks(h)->set_tokens(1000); }},
      {"blocks.tokens", StatusCode::kInvalidArgument, [&](H& h) { blocks(h)->set_tokens(-1); }},
      {"blocks.groups", StatusCode::kInvalidArgument, [&](H& h) { blocks(h)->clear_groups(); }},
      {"blocks.groups", StatusCode::kInvalidArgument,
       [&](H& h) { blocks(h)->mutable_groups(0)->set_blocks(int64_t{1} << 40); }},
      {"blocks.groups.block_bytes", StatusCode::kInvalidArgument,
       [&](H& h) { blocks(h)->mutable_groups(0)->set_block_bytes(int64_t{1} << 40); }},
      {"", StatusCode::kAborted, [](H& h) { h.set_expected_incarnation(1); }},
  };
  for (size_t i = 0; i < rows.size(); ++i) {
    v1::WorkerImportRequest head = Head(history, out.blocks);
    rows[i].change(*head.mutable_head());
    const Imported in = Import(*to_.stub, head, out.records);
    EXPECT_EQ(in.status.code(), rows[i].code) << i << ": " << in.status;
    EXPECT_EQ(DetailsOf(in.status).field, rows[i].field) << i << ": " << in.status;
    EXPECT_FALSE(in.ready);
  }
  v1::WorkerImportRequest no_head;
  no_head.set_commit(true);
  EXPECT_EQ(DetailsOf(Import(*to_.stub, no_head, "").status).field, "head");
  ExpectNothingKept(to_);
  EXPECT_EQ(Export(*from_.stub, history, 1).status.code(), StatusCode::kAborted);
}

TEST_F(SessionTransferTest, DamagedAndForgedRecordsAreRefusedAndNothingIsKept) {
  const v1::SessionHistory history = RunTurn(100);
  const Exported out = Export(*from_.stub, history);
  for (size_t at = 0; at < out.records.size(); at += 97) {
    std::string damaged = out.records;
    damaged[at] = static_cast<char>(damaged[at] ^ 1);
    const Imported in = Import(*to_.stub, Head(history, out.blocks), damaged);
    EXPECT_FALSE(in.status.ok()) << at;
    EXPECT_FALSE(in.ready) << at;
  }
  // A whole record of other tokens: right in itself, and not of this history.
  v1::SessionHistory other = history;
  other.set_ids(17, (history.ids(17) + 1) % 60);
  EXPECT_EQ(DetailsOf(Import(*to_.stub, Head(other, out.blocks), out.records).status).field,
            "records.tokens");
  // Blocks in another order, one twice, and more than there should be.
  const size_t record = worker::kBlockHeaderBytes + 16 * 8;
  const std::string first = out.records.substr(0, record);
  const std::string second = out.records.substr(record, record);
  const std::string rest = out.records.substr(2 * record);
  for (const std::string& records : {second + first + rest, first + first + rest}) {
    const Imported in = Import(*to_.stub, Head(history, out.blocks), records);
    EXPECT_EQ(DetailsOf(in.status).field, "records.place") << in.status;
  }
  EXPECT_EQ(DetailsOf(Import(*to_.stub, Head(history, out.blocks), out.records + first, true,
                             size_t{1} << 20)
                          .status)
                .field,
            "records");
  ExpectNothingKept(to_);
}

// A record whose checksums agree and whose index, times the tokens of a block, begins again at 0.
TEST_F(SessionTransferTest, AnIndexBeyondAllBlocksIsRefused) {
  for (const int32_t block_tokens : {16, 64}) {
    backend_.block_tokens = block_tokens;
    from_ = StartWorker(backend_);
    to_ = StartWorker(backend_);
    const v1::SessionHistory history = RunTurn(100);
    const Exported out = Export(*from_.stub, history);
    ASSERT_TRUE(out.status.ok()) << out.status;
    const worker::BlockFile file({.model_fingerprint = backend_.fingerprint,
                                  .numerics_id = backend_.numerics_id,
                                  .group = 0,
                                  .format = worker::KvFormat::kF16,
                                  .block_tokens = block_tokens,
                                  .block_bytes = out.blocks.groups(0).block_bytes()});
    std::string records = out.records;
    const auto first = std::as_writable_bytes(std::span(records)).first(file.record_bytes());
    auto entry = file.Decode(first);
    ASSERT_TRUE(entry.ok()) << entry.status();
    for (const int shift : {32, 57, 58, 59, 60, 63}) {
      entry->sequence = uint64_t{1} << shift;
      file.Encode(*entry, first);
      const Imported in = Import(*to_.stub, Head(history, out.blocks), records);
      EXPECT_EQ(DetailsOf(in.status).field, "records.tokens") << shift << in.status;
    }
    ExpectNothingKept(to_);
  }
}

TEST_F(SessionTransferTest, AMessageBeyondTheLimitIsRefused) {
  const v1::SessionHistory history = RunTurn(100);
  const Exported out = Export(*from_.stub, history);
  const Imported in =
      Import(*to_.stub, Head(history, out.blocks), std::string(kMaxSessionRecordsMessage + 1, 'x'),
             true, kMaxSessionRecordsMessage + 1);
  EXPECT_EQ(DetailsOf(in.status).field, "records");
  EXPECT_THAT(std::string(in.status.message()), HasSubstr("1048576"));
}

TEST_F(SessionTransferTest, BlocksOfUnknownTokensAreNone) {
  v1::SessionHistory history = RunTurn(100);
  history.set_tenant_salt(std::string(32, 'x'));
  const Exported out = Export(*from_.stub, history);
  EXPECT_TRUE(out.status.ok()) << out.status;
  EXPECT_EQ(out.blocks.tokens(), 0);
  EXPECT_TRUE(out.records.empty());
}

}  // namespace
}  // namespace kvist::services
