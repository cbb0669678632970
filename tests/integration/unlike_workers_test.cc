// Workers of one model that do not serve the same: a request goes where what it asks for is served,
// and what one of them serves is served.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

#include "tests/integration/roles_fixture.h"
#include "tests/support/temp_folder.h"

namespace kvist::services {
namespace {

using ::testing::HasSubstr;
using worker::HashBackendOptions;
using worker::KvFormat;

// Of four workers the first serves the least, the last two have the same.
constexpr size_t kDisk = 1, kWide = 2;

struct Disk {
  TempFolder folder;
};

class UnlikeWorkersTest : private Disk, public RolesTest {
 protected:
  UnlikeWorkersTest() : RolesTest(Options(folder.path())) {}

  static RoleClusterOptions Options(const std::string& disk) {
    return {
        .workers = 4,
        .unlike = [disk](size_t index, HashBackendOptions* backend, WorkerServerOptions* options) {
          if (index >= kWide) backend->formats = {KvFormat::kF16, KvFormat::kQ8};
          if (index < kWide) backend->context_tokens = 256;
          if (index != kDisk) return;
          options->offload_directory = disk;
          options->offload_bytes = 1 << 20;
        }};
  }

  // Asks eight times at once, so that the load alone would spread them; the workers that took one.
  std::set<std::string> Takers(const v1::GenerateRequest& request) {
    cluster_.pace.SetStepMs(5);
    std::vector<std::unique_ptr<Background>> all;
    for (int i = 0; i < 8; ++i) {
      all.push_back(std::make_unique<Background>(cluster_.Connect(), request));
    }
    std::set<std::string> takers;
    for (const auto& one : all) {
      one->Join();
      EXPECT_TRUE(one->status.ok()) << one->status;
      takers.insert(one->generated.started.worker_id());
    }
    cluster_.pace.SetStepMs(0);
    return takers;
  }
  // The answer of `request` when the worker that runs it is lost in the middle.
  Generated Moved(const v1::GenerateRequest& request) {
    cluster_.pace.SetStepMs(10);
    Background stream(cluster_.Connect(), request);
    EXPECT_TRUE(stream.WaitForFirstToken());
    for (auto& worker : cluster_.workers) {
      if (worker->engine().load().running_sequences == 0) continue;
      worker->Shutdown(std::chrono::milliseconds(0));
    }
    cluster_.pace.SetStepMs(0);
    stream.Join();
    EXPECT_TRUE(stream.status.ok()) << stream.status;
    return stream.generated;
  }
};

const std::set<std::string> kWideWorkers = {"worker-3", "worker-4"};

TEST_F(UnlikeWorkersTest, ARequestGoesWhereItsCacheIsServed) {
  v1::GenerateRequest format = IdsRequest(RandomIds(40, 1), 10);
  format.mutable_cache()->set_kv_format("q8");
  EXPECT_THAT(Takers(format), ::testing::IsSubsetOf(kWideWorkers));
  v1::GenerateRequest disk = IdsRequest(RandomIds(40, 2), 10);
  disk.mutable_cache()->set_offload(v1::CacheParams::DISK);
  EXPECT_THAT(Takers(disk), ::testing::ElementsAre("worker-2"));
  v1::GenerateRequest window = IdsRequest(RandomIds(40, 3), 10);
  window.mutable_cache()->mutable_attention()->set_window_tokens(300);
  EXPECT_THAT(Takers(window), ::testing::IsSubsetOf(kWideWorkers));
  EXPECT_THAT(Takers(IdsRequest(RandomIds(300, 4), 10)), ::testing::IsSubsetOf(kWideWorkers));
}

TEST_F(UnlikeWorkersTest, WhatIsServedTogetherByNoneIsSaidToBeNotReady) {
  v1::GenerateRequest both = IdsRequest(RandomIds(40, 1), 10);
  both.mutable_cache()->set_kv_format("q8");
  both.mutable_cache()->set_offload(v1::CacheParams::DISK);
  Generated none;
  const absl::Status status = Generate(both, &none);
  EXPECT_EQ(DetailsOf(status).reason, ErrorReason::kNoWorker) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("what the request asks of its cache"));
}

TEST_F(UnlikeWorkersTest, AnAnswerMovesToAWorkerThatHasItsFormat) {
  v1::GenerateRequest request = IdsRequest(RandomIds(40, 1), 80);
  request.mutable_cache()->set_kv_format("q8");
  Generated alone;
  ASSERT_TRUE(Generate(request, &alone).ok());
  const Generated moved = Moved(request);
  EXPECT_EQ(moved.finished.attempts(), 2u);
  EXPECT_EQ(IdsOf(moved), IdsOf(alone));
}

TEST_F(UnlikeWorkersTest, AnAnswerWhoseDiskIsLostGoesOnWithoutOne) {
  v1::GenerateRequest request = IdsRequest(RandomIds(40, 1), 80);
  Generated alone;
  ASSERT_TRUE(Generate(request, &alone).ok());
  request.mutable_cache()->set_offload(v1::CacheParams::DISK);
  const Generated moved = Moved(request);
  EXPECT_EQ(moved.started.worker_id(), "worker-2");
  EXPECT_EQ(moved.finished.attempts(), 2u);
  EXPECT_EQ(IdsOf(moved), IdsOf(alone));
}

// A session keeps what it asked for, and its turns go on where that is no more.
TEST_F(UnlikeWorkersTest, ATurnOfASessionGoesOnWhereNobodyHasADisk) {
  v1::CreateSessionRequest create;
  create.set_id("s");
  create.mutable_cache()->set_offload(v1::CacheParams::DISK);
  ASSERT_TRUE(client_->CreateSession(create).ok());
  Generated turn;
  ASSERT_TRUE(Generate(InSession(IdsRequest(RandomIds(40, 1), 10), "s"), &turn).ok());
  EXPECT_EQ(turn.started.worker_id(), "worker-2");
  cluster_.workers[kDisk]->Shutdown(std::chrono::milliseconds(0));
  const auto refused_for_disk = [&] {
    v1::GenerateRequest request = IdsRequest(RandomIds(4, 1), 1);
    request.mutable_cache()->set_offload(v1::CacheParams::DISK);
    Generated none;
    return DetailsOf(Generate(request, &none)).field == "cache.offload";
  };
  ASSERT_TRUE(RoleCluster::Until(refused_for_disk));
  const absl::Status status = Generate(InSession(IdsRequest(RandomIds(4, 2), 4), "s"), &turn);
  EXPECT_TRUE(status.ok()) << status;
  create.set_id("t");
  EXPECT_EQ(DetailsOf(client_->CreateSession(create).status()).field, "cache.offload");
}

class OneWorkerAfterAnotherTest : public RolesTest {
 protected:
  OneWorkerAfterAnotherTest()
      : RolesTest({.unlike = [](size_t index, HashBackendOptions* backend, WorkerServerOptions*) {
          if (index == 1) backend->formats = {KvFormat::kQ8, KvFormat::kF16};
        }}) {}
};

TEST_F(OneWorkerAfterAnotherTest, WhatALaterLifeServesIsBelieved) {
  v1::GenerateRequest request = IdsRequest(RandomIds(40, 1), 10);
  request.mutable_cache()->set_kv_format("q8");
  Generated generated;
  EXPECT_EQ(DetailsOf(Generate(request, &generated)).field, "cache.kv_format");
  cluster_.workers[0]->Shutdown(std::chrono::milliseconds(0));
  cluster_.StartWorker();
  EXPECT_TRUE(RoleCluster::Until([&] { return Generate(request, &generated).ok(); }));
}

}  // namespace
}  // namespace kvist::services
