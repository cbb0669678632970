#include "services/runtime/stream_wire.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <variant>

#include "cache_manager/limits.h"
#include "common/base/status.h"

namespace kvist::services {
namespace {

namespace cm = ::kvist::cache_manager;

cm::BlockKey Key(uint8_t fill) {
  cm::BlockKey key;
  key.bytes.fill(fill);
  return key;
}

// The text of a message stands for its content: the plain structs have no comparison.
std::string RoundTrip(const cm::WorkerMessage& message) {
  const v1::WorkerMessage wire = ToProto(message, {.model_name = "m", .context_tokens = 7});
  v1::WorkerMessage parsed;
  EXPECT_TRUE(parsed.ParseFromString(wire.SerializeAsString()));
  const auto back = FromProto(parsed);
  EXPECT_TRUE(back.ok()) << back.status();
  if (!back.ok()) return "";
  EXPECT_EQ(back->index(), message.index());
  EXPECT_EQ(ToProto(*back, {.model_name = "m", .context_tokens = 7}).DebugString(),
            wire.DebugString());
  return wire.DebugString();
}

TEST(StreamWireTest, WorkerMessagesSurviveTheWire) {
  cm::Hello hello{.last_seq = 1ull << 40};
  hello.info.id = WorkerId("w");
  hello.info.incarnation = Incarnation(0xffffffffffffffff);
  hello.info.block_tokens = 32;
  hello.info.pools = {{.group = "window=512",
                       .format = "f16",
                       .window_tokens = 512,
                       .block_tokens = 32,
                       .bytes_per_block = cm::kMaxBytesPerBlock,
                       .num_blocks = cm::kMaxBlocksPerPool}};
  const auto parsed = FromProto(ToProto(hello, {}));
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(std::get<cm::Hello>(*parsed).info, hello.info);
  EXPECT_NE(RoundTrip(hello), "");
  cm::EventBatch batch{.first_seq = 9, .load = {1, 2, 3, 4, true}};
  batch.events = {
      cm::BlockStored{.pool = 1, .key = Key(1), .parent = Key(2), .tier = cm::Tier::kDisk},
      cm::BlockEvicted{.pool = 15, .key = Key(3), .cause = cm::EvictionCause::kCommand},
      cm::SessionHolds{.session = SessionId("s"),
                       .tenant = TenantId("t"),
                       .first_block = 65536,
                       .keys = {Key(4), Key(5)}},
      cm::SessionReleased{.session = SessionId("s")},
      cm::SessionUnnamed{.session = SessionId("s"), .partial_blocks = 1, .reserved_blocks = 2},
      cm::SessionPhaseChanged{.session = SessionId("s"), .phase = cm::SessionPhase::kClosed}};
  const std::string text = RoundTrip(batch);
  for (const char* kind : {"stored", "evicted", "holds", "released", "unnamed", "phase"}) {
    EXPECT_THAT(text, testing::HasSubstr(kind));
  }
  EXPECT_THAT(RoundTrip(cm::Alive{}), testing::HasSubstr("alive"));
  RoundTrip(cm::Heartbeat{.seq = 3, .digests = {{1, 2}, {3, 4}}});
  RoundTrip(cm::SnapshotChunk{.resync_id = 1,
                              .base_seq = 2,
                              .index = 3,
                              .end_seq = 4,
                              .events = batch.events,
                              .last = true});
  RoundTrip(cm::CommandOutcome{.request = RequestId("r"),
                               .result = cm::CommandResult::kClipped,
                               .evicted_blocks = 5,
                               .left_blocks = 6,
                               .reason = "why"});
}

TEST(StreamWireTest, ManagerMessagesSurviveTheWire) {
  const cm::EvictCommand by_keys{.incarnation = Incarnation(1),
                                 .intent_version = 2,
                                 .request = RequestId("r"),
                                 .pool = 3,
                                 .keys = {Key(7)}};
  const cm::EvictCommand by_session{
      .request = RequestId("r"), .session = SessionId("s"), .release = true};
  const cm::EvictCommand cut{
      .request = RequestId("r"), .session = SessionId("s"), .keep_tokens = uint64_t{40}};
  const cm::EvictCommand by_count{.request = RequestId("r"), .pool = 2, .blocks = 9};
  const cm::ForkCommand fork{.incarnation = Incarnation(1),
                             .request = RequestId("r"),
                             .session = SessionId("s"),
                             .new_session = SessionId("t")};
  for (const cm::ManagerMessage& message :
       {cm::ManagerMessage(fork),
        cm::ManagerMessage(cm::Welcome{.heartbeat_interval_ms = 5, .intent_version = 6}),
        cm::ManagerMessage(cm::ResyncRequest{.resync_id = 7}),
        cm::ManagerMessage(cm::DigestRequest()), cm::ManagerMessage(by_keys),
        cm::ManagerMessage(by_session), cm::ManagerMessage(cut), cm::ManagerMessage(by_count)}) {
    const v1::ManagerMessage wire = ToProto(message, "manager");
    const auto back = FromProto(wire);
    ASSERT_TRUE(back.ok()) << back.status();
    EXPECT_EQ(ToProto(*back, "manager").DebugString(), wire.DebugString());
  }
}

TEST(StreamWireTest, KeysAreWholeAndCounted) {
  EXPECT_EQ(KeysFromBytes("k", std::string(32, 'x'), 2)->size(), 2u);
  EXPECT_TRUE(KeysFromBytes("k", "", 2)->empty());
  EXPECT_FALSE(KeysFromBytes("k", std::string(48, 'x'), 2).ok());
  EXPECT_EQ(DetailsOf(KeysFromBytes("k", std::string(31, 'x'), 2).status()).field, "k");
}

TEST(StreamWireTest, DamagedBytesGiveAnErrorOrAMessageAndNeverMore) {
  cm::EventBatch batch{.first_seq = 9};
  for (uint8_t i = 0; i < 20; ++i) {
    batch.events.emplace_back(cm::BlockStored{.pool = i, .key = Key(i), .parent = Key(i)});
    batch.events.emplace_back(cm::SessionHolds{.session = SessionId("s"), .keys = {Key(i)}});
  }
  for (cm::Event& event : batch.events) {
    if (auto* stored = std::get_if<cm::BlockStored>(&event)) stored->pool %= 16;
  }
  const std::string good = ToProto(batch, {}).SerializeAsString();
  testing::internal::CaptureStderr();  // protobuf tells of text that is no UTF-8
  std::mt19937 random(3);
  int refused = 0, taken = 0;
  for (int i = 0; i < 20'000; ++i) {
    std::string bytes = good;
    for (size_t n = 1 + random() % 4; n > 0; --n)
      bytes[random() % bytes.size()] = static_cast<char>(random());
    if (random() % 4 == 0) bytes.resize(random() % bytes.size());
    v1::WorkerMessage message;
    if (!message.ParseFromString(bytes)) continue;
    const auto plain = FromProto(message);
    ++(plain.ok() ? taken : refused);
    if (!plain.ok()) {
      EXPECT_EQ(plain.status().code(), absl::StatusCode::kInvalidArgument);
    }
  }
  testing::internal::GetCapturedStderr();
  EXPECT_GT(refused, 100);
  EXPECT_GT(taken, 100);
}

}  // namespace
}  // namespace kvist::services
