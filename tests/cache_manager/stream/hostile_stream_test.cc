// A worker that sends what no worker should: only its own stream ends.
#include <string>
#include <utility>
#include <vector>

#include "cache_manager/limits.h"
#include "gtest/gtest.h"
#include "tests/cache_manager/stream/stream_cluster.h"

namespace kvist::cache_manager {
namespace {

class HostileStreamTest : public testing::Test {
 protected:
  HostileStreamTest() {
    EXPECT_TRUE(cluster_.Connect(good_).ok());
    cluster_.Settle(good_);
    EXPECT_TRUE(cluster_.Connect(bad_).ok());
    cluster_.Settle(bad_);
  }
  // The stream is closed with INVALID_ARGUMENT, nobody else is disturbed, and a reconnect heals.
  void ExpectRefused(WorkerMessage message) {
    const absl::Status status =
        cluster_.manager->Receive(bad_.connection, std::move(message), cluster_.now_ms);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_FALSE(cluster_.entry(bad_).connected);
    cluster_.Settle(good_);
    ASSERT_TRUE(cluster_.Connect(bad_).ok());
    cluster_.Settle(bad_);
  }
  void ExpectTaken(WorkerMessage message) {
    const absl::Status status =
        cluster_.manager->Receive(bad_.connection, std::move(message), cluster_.now_ms);
    EXPECT_TRUE(status.ok()) << status;
  }
  // Events were made up, so the worker is behind what the manager saw of it: a new connection heals
  // that.
  void Reconnect() {
    cluster_.Cut(bad_);
    ASSERT_TRUE(cluster_.Connect(bad_).ok());
    cluster_.Settle(bad_);
    cluster_.Settle(good_);
  }
  uint64_t NextSeq() { return bad_.worker.log().last_seq() + 1; }
  EventBatch Batch(Event event, size_t count = 1) {
    return {.first_seq = NextSeq(), .events = std::vector<Event>(count, event)};
  }

  Cluster cluster_;
  Cluster::Node good_{{.seed = 1, .name = "good"}};
  Cluster::Node bad_{{.seed = 2, .name = "bad"}};
};

TEST_F(HostileStreamTest, BatchesAreTakenAtTheLimitAndRefusedBeyond) {
  const SessionHolds holds{.session = SessionId("s"), .pool = 0};
  ExpectTaken(Batch(holds, kMaxEventsPerBatch));
  Reconnect();
  ExpectRefused(Batch(holds, kMaxEventsPerBatch + 1));
  SessionHolds long_chain = holds;
  long_chain.keys.resize(kMaxKeysPerEvent + 1);
  ExpectRefused(Batch(long_chain));
  long_chain.keys.resize(kMaxKeysPerEvent);
  ExpectRefused(Batch(long_chain, kMaxKeysPerBatch / kMaxKeysPerEvent + 1));
  long_chain.first_block = kMaxChainBlocks;
  ExpectRefused(Batch(long_chain));
}

TEST_F(HostileStreamTest, WrongPoolsEnumsAndIdsAreRefused) {
  BlockKey key;
  key.bytes[0] = 1;
  ExpectRefused(Batch(BlockStored{.pool = 2, .key = key}));
  ExpectRefused(Batch(BlockStored{.pool = 0, .key = key, .tier = static_cast<Tier>(3)}));
  ExpectRefused(Batch(BlockStored{.pool = 0}));
  ExpectRefused(Batch(SessionHolds{.session = SessionId(std::string(kMaxIdBytes + 1, 's'))}));
  ExpectRefused(Batch(SessionHolds{}));
  ExpectRefused(Batch(SessionReleased{}));
  ExpectRefused(EventBatch{.first_seq = 0});
  ExpectRefused(EventBatch{.first_seq = ~uint64_t{0}});
  ExpectRefused(Heartbeat{.seq = 0, .digests = std::vector<PoolDigest>(3)});
  ExpectRefused(Hello{.info = bad_.worker.info()});
  ExpectRefused(CommandOutcome{.request = RequestId(std::string(kMaxIdBytes + 1, 'r'))});
}

TEST_F(HostileStreamTest, AWorkerCannotStoreMoreThanItsPoolHas) {
  std::vector<Event> events;
  for (uint32_t i = 0; i <= bad_.worker.info().pools[0].num_blocks; ++i) {
    BlockKey key;
    key.bytes[0] = static_cast<uint8_t>(i);
    key.bytes[1] = 1;
    events.push_back(BlockStored{.pool = 0, .key = key});
  }
  ExpectTaken(EventBatch{.first_seq = NextSeq(), .events = events});
  EXPECT_EQ(cluster_.confidence(bad_), Confidence::kResync);
  EXPECT_LE(cluster_.entry(bad_).mirror->blocks(0).size(), events.size() - 1);
  Reconnect();
}

TEST_F(HostileStreamTest, HelloIsChecked) {
  const Hello good{.info = bad_.worker.info()};
  const auto refused = [&](auto change) {
    Hello hello = good;
    hello.info.id = WorkerId("third");
    change(hello);
    return cluster_.manager->Receive(777, hello, 0).code() == absl::StatusCode::kInvalidArgument;
  };
  EXPECT_TRUE(refused([](Hello& h) { h.protocol_version = kProtocolVersion + 1; }));
  EXPECT_TRUE(refused([](Hello& h) { h.info.id = WorkerId(); }));
  EXPECT_TRUE(refused([](Hello& h) { h.info.incarnation = Incarnation(); }));
  EXPECT_TRUE(refused([](Hello& h) { h.info.pools.clear(); }));
  EXPECT_TRUE(refused([](Hello& h) { h.info.pools.resize(kMaxPoolsPerWorker + 1); }));
  EXPECT_TRUE(refused([](Hello& h) { h.info.pools[0].num_blocks = kMaxBlocksPerPool + 1; }));
  EXPECT_TRUE(refused([](Hello& h) { h.info.pools[0].bytes_per_block = 0; }));
  EXPECT_TRUE(refused([](Hello& h) { h.info.block_tokens = 24; }));
  EXPECT_FALSE(refused([](Hello& h) { h.info.pools[0].num_blocks = kMaxBlocksPerPool; }));
  // The same life cannot change its pools.
  Hello changed = good;
  changed.info.pools[0].num_blocks += 1;
  EXPECT_EQ(cluster_.manager->Receive(778, changed, 0).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(HostileStreamTest, KeysThatWaitForASnapshotAreBounded) {
  // A gap: what follows waits for the snapshot.
  const size_t per_batch = kMaxKeysPerBatch / kMaxKeysPerEvent;
  const uint64_t gap = NextSeq();
  uint64_t next = gap + 1;
  const uint64_t before = cluster_.entry(bad_).resyncs;
  SessionHolds holds{.session = SessionId("s"), .pool = 0};
  holds.keys.resize(kMaxKeysPerEvent);
  const auto send = [&] {
    ExpectTaken(EventBatch{.first_seq = next, .events = std::vector<Event>(per_batch, holds)});
    next += per_batch;
  };
  for (size_t i = 0; i < kMaxBufferedKeys / kMaxKeysPerBatch; ++i) send();
  EXPECT_EQ(cluster_.entry(bad_).resyncs, before + 1);
  // The snapshot begins at the gap: all that came since is needed, and still there.
  ResyncRequest asked;
  for (auto& [connection, message] : cluster_.manager->TakeOutgoing()) {
    if (const auto* request = std::get_if<ResyncRequest>(&message)) asked = *request;
  }
  ExpectTaken(SnapshotChunk{.resync_id = asked.resync_id, .base_seq = gap, .end_seq = gap});
  EXPECT_EQ(cluster_.entry(bad_).resyncs, before + 1);
  send();
  EXPECT_EQ(cluster_.entry(bad_).resyncs, before + 2);
  Reconnect();
}

TEST_F(HostileStreamTest, MessagesBeforeHelloAreRefused) {
  EXPECT_EQ(cluster_.manager->Receive(999, EventBatch{.first_seq = 1}, 0).code(),
            absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace kvist::cache_manager
