#include "services/frontend/model_directory.h"

#include <gtest/gtest.h>

#include <chrono>
#include <limits>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/support/captured_log.h"
#include "tests/support/simulated_clock.h"

namespace kvist::services {
namespace {

v1::WorkerInfo Info(const std::string& id, bool connected, int64_t lag_ms) {
  v1::WorkerInfo info;
  info.set_worker_id(id);
  info.set_incarnation(1);
  info.set_address("127.0.0.1:1");
  info.set_model_fingerprint("m");
  info.set_connected(connected);
  info.set_lag_ms(lag_ms);
  return info;
}

class ModelDirectoryTest : public testing::Test {
 protected:
  std::vector<std::string> Ids() const {
    std::vector<std::string> ids;
    for (const KnownWorker& worker : directory_.WorkersOf("m")) ids.push_back(worker.id);
    return ids;
  }

  void Learn(const v1::WorkerInfo& info) { directory_.Learn(info, clock_.Now()); }

  SimulatedClock clock_;
  ManagerClient manager_{nullptr};
  ModelDirectory directory_{ModelDirectoryOptions(), &manager_, &clock_};
};

// The manager lists workers by id, so the dead one comes first or last by chance.
TEST_F(ModelDirectoryTest, WorkerStartedAgainUnderAnotherNameTakesTheAddress) {
  for (const auto& [dead, alive] : {std::pair("a", "b"), std::pair("b", "a")}) {
    Learn(Info(dead, true, 500));  // as heard a poll ago
    EXPECT_EQ(Ids(), std::vector<std::string>{dead});
    for (int poll = 0; poll < 2; ++poll) {
      std::vector<v1::WorkerInfo> listed = {Info(dead, false, 900), Info(alive, true, 10)};
      if (std::string(alive) < dead) std::swap(listed[0], listed[1]);
      for (const v1::WorkerInfo& info : listed) Learn(info);
      EXPECT_EQ(Ids(), std::vector<std::string>{alive}) << "dead: " << dead;
    }
  }
}

TEST_F(ModelDirectoryTest, OfTwoHalfDeadWorkersTheOneHeardLaterHasTheAddress) {
  for (const auto& [old, later] : {std::pair("a", "b"), std::pair("b", "a")}) {
    Learn(Info(old, true, 3000));
    Learn(Info(later, true, 100));
    Learn(Info(old, true, 3000));
    EXPECT_EQ(Ids(), std::vector<std::string>{later});
  }
}

// The manager has not noticed the death, and the successor's stream broke for a moment.
TEST_F(ModelDirectoryTest, DeadWorkerCalledConnectedDoesNotShadowItsUnconnectedSuccessor) {
  for (const auto& [dead, alive] : {std::pair("a", "b"), std::pair("b", "a")}) {
    Learn(Info(dead, true, 500));
    std::vector<v1::WorkerInfo> listed = {Info(dead, true, 900), Info(alive, false, 200)};
    if (std::string(alive) < dead) std::swap(listed[0], listed[1]);
    for (const v1::WorkerInfo& info : listed) Learn(info);
    EXPECT_EQ(Ids(), std::vector<std::string>{alive}) << "dead: " << dead;
    clock_.Advance(std::chrono::seconds(1));
  }
}

TEST_F(ModelDirectoryTest, NewsOfAnEarlierLifeDoesNotReplaceTheOneThatLives) {
  v1::WorkerInfo earlier = Info("w", true, 300), later = Info("w", true, 0);
  later.set_incarnation(2);
  later.set_address("127.0.0.1:2");  // the port was drawn anew
  Learn(earlier);
  Learn(later);  // it answered us itself
  Learn(earlier);
  const std::vector<KnownWorker> workers = directory_.WorkersOf("m");
  ASSERT_EQ(workers.size(), 1u);
  EXPECT_EQ(workers[0].incarnation, 2u);
  EXPECT_EQ(workers[0].address, "127.0.0.1:2");
}

TEST_F(ModelDirectoryTest, AnAnswerThatCameLateDoesNotMakeItsNewsYounger) {
  const MonotonicTime asked_at = clock_.Now();
  clock_.Advance(std::chrono::milliseconds(900));
  Learn(Info("new", true, 100));
  directory_.Learn(Info("dead", true, 0), asked_at);  // alive when it was asked about
  EXPECT_EQ(Ids(), std::vector<std::string>{"new"});
}

TEST_F(ModelDirectoryTest, AnAgeThatNoClockCanHoldIsOldAndNotYoung) {
  v1::WorkerInfo absurd = Info("absurd", true, std::numeric_limits<int64_t>::max());
  absurd.set_load_age_ms(std::numeric_limits<int64_t>::max());
  Learn(absurd);
  EXPECT_LT(directory_.WorkersOf("m")[0].load_at, clock_.Now());
  Learn(Info("new", true, 100));
  EXPECT_EQ(Ids(), std::vector<std::string>{"new"});
  Learn(absurd);
  EXPECT_EQ(Ids(), std::vector<std::string>{"new"});
}

TEST_F(ModelDirectoryTest, ANewLifeIsNotPausedForTheFailuresOfTheEarlierOne) {
  Learn(Info("w", true, 100));
  directory_.MarkFailed("w", 1);
  EXPECT_GT(directory_.WorkersOf("m")[0].failed_until, clock_.Now());
  v1::WorkerInfo later = Info("w", true, 0);
  later.set_incarnation(2);
  Learn(later);
  EXPECT_LE(directory_.WorkersOf("m")[0].failed_until, clock_.Now());
}

TEST_F(ModelDirectoryTest, AWorkerThatDoesNotTellItsModelIsToldToTheLogOnce) {
  const CapturedLog log;
  ModelDirectory polling({.poll_interval = std::chrono::milliseconds(1)}, &manager_, &clock_);
  polling.Learn(Info("a", true, 0), clock_.Now());  // nobody listens there
  polling.Start();
  const auto lines = [&](const char* id) {
    return log.Lines(absl::StrCat("worker ", id, " at 127.0.0.1:"));
  };
  while (lines("a").empty()) std::this_thread::yield();
  v1::WorkerInfo later = Info("b", true, 0);
  later.set_address("127.0.0.1:2");
  polling.Learn(later, clock_.Now());
  while (lines("b").empty()) std::this_thread::yield();  // so "a" was asked again
  polling.Stop();
  EXPECT_EQ(lines("a").size(), 1u);
  EXPECT_EQ(lines("b").size(), 1u);
}

TEST_F(ModelDirectoryTest, UnknownKvFormatIsNoErrorWhereNoModelIsKnown) {
  v1::CacheParams q8;
  q8.set_kv_format("q8");
  EXPECT_TRUE(directory_.CheckServed(q8).ok());
}

}  // namespace
}  // namespace kvist::services
