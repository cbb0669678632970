#include "services/frontend/model_directory.h"

#include <gtest/gtest.h>

#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/support/captured_log.h"

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

  SystemClock clock_;
  ManagerClient manager_{nullptr};
  ModelDirectory directory_{ModelDirectoryOptions(), &manager_, &clock_};
};

// The manager lists workers by id, so the dead one comes first or last by chance.
TEST_F(ModelDirectoryTest, WorkerStartedAgainUnderAnotherNameTakesTheAddress) {
  for (const auto& [dead, alive] : {std::pair("a", "b"), std::pair("b", "a")}) {
    directory_.Learn(Info(dead, true, 500));  // as heard a poll ago
    EXPECT_EQ(Ids(), std::vector<std::string>{dead});
    for (int poll = 0; poll < 2; ++poll) {
      std::vector<v1::WorkerInfo> listed = {Info(dead, false, 900), Info(alive, true, 10)};
      if (std::string(alive) < dead) std::swap(listed[0], listed[1]);
      for (const v1::WorkerInfo& info : listed) directory_.Learn(info);
      EXPECT_EQ(Ids(), std::vector<std::string>{alive}) << "dead: " << dead;
    }
  }
}

TEST_F(ModelDirectoryTest, OfTwoHalfDeadWorkersTheOneHeardLaterHasTheAddress) {
  for (const auto& [old, later] : {std::pair("a", "b"), std::pair("b", "a")}) {
    directory_.Learn(Info(old, true, 3000));
    directory_.Learn(Info(later, true, 100));
    directory_.Learn(Info(old, true, 3000));
    EXPECT_EQ(Ids(), std::vector<std::string>{later});
  }
}

TEST_F(ModelDirectoryTest, AWorkerThatDoesNotTellItsModelIsToldToTheLogOnce) {
  const CapturedLog log;
  ModelDirectory polling({.poll_interval = std::chrono::milliseconds(1)}, &manager_, &clock_);
  polling.Learn(Info("a", true, 0));  // nobody listens there
  polling.Start();
  const auto lines = [&](const char* id) {
    return log.Lines(absl::StrCat("worker ", id, " at 127.0.0.1:"));
  };
  while (lines("a").empty()) std::this_thread::yield();
  v1::WorkerInfo later = Info("b", true, 0);
  later.set_address("127.0.0.1:2");
  polling.Learn(later);
  while (lines("b").empty()) std::this_thread::yield();  // so "a" was asked again
  polling.Stop();
  EXPECT_EQ(lines("a").size(), 1u);
  EXPECT_EQ(lines("b").size(), 1u);
}

TEST_F(ModelDirectoryTest, UnknownKvFormatIsNoErrorWhereNoModelIsKnown) {
  EXPECT_TRUE(directory_.CheckKvFormat("q8").ok());
}

}  // namespace
}  // namespace kvist::services
