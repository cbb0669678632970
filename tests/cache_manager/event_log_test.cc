#include "cache_manager/event_log.h"

#include <algorithm>
#include <cstdint>
#include <random>

#include "gtest/gtest.h"

namespace kvist::cache_manager {
namespace {

Event Released(int i) { return SessionReleased{SessionId(std::to_string(i))}; }

TEST(EventLogTest, NumbersEventsFromOneWithoutHoles) {
  EventLog log({.num_pools = 1});
  EXPECT_EQ(log.last_seq(), 0u);
  for (int i = 0; i < 5; ++i) log.Append(Released(i));
  EXPECT_EQ(log.TakeBatch(2).first_seq, 1u);
  const EventRun rest = log.TakeBatch();
  EXPECT_EQ(rest.first_seq, 3u);
  EXPECT_EQ(rest.events.size(), 3u);
  EXPECT_EQ(log.TakeBatch().first_seq, 6u);
  EXPECT_EQ(log.last_seq(), 5u);
}

TEST(EventLogTest, OneEventBeyondTheLimitDropsAllThatWait) {
  EventLog log({.num_pools = 1});
  for (size_t i = 0; i < kMaxWaitingEvents; ++i) log.Append(Released(1));
  EXPECT_EQ(log.waiting(), kMaxWaitingEvents);
  EXPECT_EQ(log.overflows(), 0u);
  log.Append(Released(2));
  EXPECT_EQ(log.overflows(), 1u);
  const EventRun run = log.TakeBatch();
  EXPECT_EQ(run.first_seq, kMaxWaitingEvents + 1);
  EXPECT_EQ(run.events.size(), 1u);
}

TEST(EventLogTest, OneKeyBeyondTheLimitDropsAllThatWait) {
  EventLog log({.num_pools = 1});
  const auto hold = [&](size_t keys) { log.Append(SessionHolds{.keys = EventKeys(keys)}); };
  const size_t fit = kMaxWaitingKeys / kMaxKeysPerEvent;
  for (size_t i = 0; i < fit; ++i) hold(kMaxKeysPerEvent);
  log.Append(Released(1));
  EXPECT_EQ(log.waiting(), fit + 1);
  EXPECT_EQ(log.waiting_keys(), kMaxWaitingKeys);
  EXPECT_EQ(log.overflows(), 0u);
  hold(1);
  EXPECT_EQ(log.overflows(), 1u);
  EXPECT_EQ(log.waiting(), 1u);
  EXPECT_EQ(log.waiting_keys(), 1u);
  EXPECT_EQ(log.TakeBatch().first_seq, fit + 2);
  EXPECT_EQ(log.waiting_keys(), 0u);
  // What was taken or dropped makes room.
  for (size_t i = 0; i < 3 * fit; ++i) {
    hold(kMaxKeysPerEvent);
    if (i % 2 == 0) log.TakeBatch(1);
    if (i % 10 == 0) log.DropThrough(log.last_seq());
  }
  EXPECT_EQ(log.overflows(), 1u);
}

TEST(EventLogTest, BatchesStayWithinTheLimitsOfEventsAndKeys) {
  EventLog log({.num_pools = 1});
  for (size_t i = 0; i < kMaxEventsPerBatch + 1; ++i) log.Append(Released(1));
  EXPECT_EQ(log.TakeBatch().events.size(), kMaxEventsPerBatch);
  log.TakeBatch();
  const size_t fit = kMaxKeysPerBatch / kMaxKeysPerEvent;
  for (size_t i = 0; i < fit + 1; ++i) {
    log.Append(SessionHolds{.keys = EventKeys(kMaxKeysPerEvent)});
  }
  EXPECT_EQ(log.TakeBatch().events.size(), fit);
  EXPECT_EQ(log.TakeBatch().events.size(), 1u);
}

TEST(EventLogTest, DropThroughKeepsLaterEvents) {
  EventLog log({.num_pools = 1});
  for (int i = 1; i <= 5; ++i) log.Append(Released(i));
  log.DropThrough(3);
  EXPECT_EQ(log.TakeBatch().first_seq, 4u);
  log.DropThrough(3);
  log.DropThrough(100);
  EXPECT_EQ(log.last_seq(), 5u);
}

TEST(EventLogTest, EventsKeepTheirOrderWhereverTheRingBegins) {
  EventLog log({});
  std::mt19937 random(1);
  uint64_t appended = 0;
  uint64_t taken = 0;
  // It wraps around, and it grows when it has wrapped.
  for (int round = 0; round < 200; ++round) {
    for (uint64_t n = random() % 200; n > 0; --n) {
      BlockStored event;
      event.pool = static_cast<PoolIndex>(++appended % 1000);
      log.Append(event);
    }
    if (round % 3 == 0) {
      const uint64_t seq = taken + random() % 50;
      log.DropThrough(seq);
      taken = std::max(taken, std::min(seq, appended));
    }
    const EventRun run = log.TakeBatch(random() % 150);
    ASSERT_EQ(run.first_seq, taken + 1);
    for (const Event& event : run.events) {
      ASSERT_EQ(std::get<BlockStored>(event).pool, ++taken % 1000);
    }
    ASSERT_EQ(log.waiting(), appended - taken);
    ASSERT_EQ(log.last_seq(), appended);
  }
  EXPECT_GT(log.waiting(), 1024u);
}

TEST(DigestTest, TiersKeysAndHoldingsAreToldApart) {
  BlockKey a, b;
  a.bytes[0] = b.bytes[15] = 1;
  EXPECT_NE(PlacementHash(a, Tier::kDevice), PlacementHash(b, Tier::kDevice));
  EXPECT_NE(PlacementHash(a, Tier::kDevice), PlacementHash(a, Tier::kHost));
  const SessionId s("s"), t("t");
  EXPECT_EQ(HoldingHash(s, {}), 0u);
  EXPECT_NE(HoldingHash(s, {.chain_blocks = 1, .last_key = a}),
            HoldingHash(t, {.chain_blocks = 1, .last_key = a}));
  EXPECT_NE(HoldingHash(s, {.partial_blocks = 1}), HoldingHash(s, {.reserved_blocks = 1}));
}

}  // namespace
}  // namespace kvist::cache_manager
