// The frontend role between a manager and a worker that say what a test wants.
#include "services/frontend/frontend_server.h"

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "services/client/client.h"
#include "services/frontend/cache_drift.h"
#include "tests/services/frontend/fake_manager.h"
#include "tests/services/frontend/scripted_worker.h"

namespace kvist::services {
namespace {

constexpr int64_t kPromptTokens = 65;
constexpr int64_t kPromised = 64;

class FrontendServerTest : public ::testing::Test {
 protected:
  explicit FrontendServerTest(bool other_is_there = false) {
    manager_.workers = {InfoOf(worker_)};
    if (other_is_there) manager_.workers.push_back(InfoOf(other_));
    manager_.on_locate = [this](const v1::LocateRequest&, v1::LocateResponse* response) {
      for (size_t i = 0; i < manager_.workers.size(); ++i) {
        v1::WorkerMatch& match = *response->add_workers();
        *match.mutable_worker() = manager_.workers[i];
        match.set_matched_device_tokens(device_[i]);
        match.set_matched_disk_tokens(disk_[i]);
        match.set_matched_tokens(device_[i] + disk_[i]);
      }
      return away_ ? grpc::Status(grpc::StatusCode::UNAVAILABLE, "away") : grpc::Status::OK;
    };
    FrontendServerOptions options;
    options.cache_manager_address = manager_.address();
    frontend_ = FrontendServer::Start(options).value();
    EXPECT_TRUE(frontend_->WaitUntilReady(std::chrono::seconds(60)));
    client_ = Client::Connect(frontend_->server().grpc_address(), std::chrono::seconds(60)).value();
  }

  static v1::WorkerInfo InfoOf(const ScriptedWorker& worker) {
    v1::WorkerInfo info;
    info.set_worker_id(worker.id());
    info.set_incarnation(1);
    info.set_address(worker.address());
    info.set_model_fingerprint("letters");
    info.set_context_tokens(512);
    info.set_connected(true);
    return info;
  }

  // One request that finds so many cached tokens; the Locate that came before it.
  v1::LocateRequest Run(int64_t cached_tokens,
                        v1::CacheParams::Offload offload = v1::CacheParams::OFF) {
    cached_tokens_ = cached_tokens;
    v1::GenerateRequest request;
    request.mutable_cache()->set_offload(offload);
    for (int64_t i = 0; i < kPromptTokens; ++i) request.mutable_ids()->add_ids(LetterId('a'));
    request.mutable_stop()->set_max_new_tokens(1);
    Generated generated;
    const absl::Status status = client_->Generate(request, {}, &generated);
    EXPECT_TRUE(status.ok()) << status;
    return manager_.calls().locates.back();
  }

  std::atomic<int64_t> cached_tokens_ = 0;
  std::atomic<bool> away_ = false;
  std::array<std::atomic<int64_t>, 2> device_{kPromised, kPromised};  // by worker
  std::array<std::atomic<int64_t>, 2> disk_{0, 0};
  const Script script_ = [this](ScriptStream& stream) {
    stream.Accept();
    stream.Tokens(0, 1);
    stream.Finish(v1::LENGTH, cached_tokens_);
    return grpc::Status::OK;
  };
  ScriptedWorker worker_{"w", script_};
  ScriptedWorker other_{"x", script_};
  FakeManager manager_;
  std::unique_ptr<FrontendServer> frontend_;
  std::unique_ptr<Client> client_;
};

TEST_F(FrontendServerTest, AWorkerThatHasLessThanPromisedIsNamedInTheNextLocate) {
  for (size_t i = 0; i < CacheDrift::kLeastRequests; ++i) {
    EXPECT_EQ(Run(/*cached_tokens=*/0).doubted_size(), 0) << i;
  }
  away_ = true;  // the manager does not hear of it
  Run(kPromised);
  away_ = false;
  const v1::LocateRequest told = Run(kPromised);
  ASSERT_EQ(told.doubted_size(), 1);
  EXPECT_EQ(told.doubted(0).worker_id(), "w");
  EXPECT_EQ(told.doubted(0).incarnation(), 1u);
  EXPECT_EQ(Run(kPromised).doubted_size(), 0);
}

TEST_F(FrontendServerTest, AWorkerThatHasWhatWasPromisedIsNotDoubted) {
  for (size_t i = 0; i < 2 * CacheDrift::kLeastRequests; ++i) {
    EXPECT_EQ(Run(kPromised).doubted_size(), 0) << i;
  }
}

TEST_F(FrontendServerTest, WhatLiesOnTheDiskIsNoPromise) {
  device_[0] = disk_[0] = 32;
  for (const auto offload : {v1::CacheParams::OFF, v1::CacheParams::DISK}) {
    for (size_t i = 0; i < 2 * CacheDrift::kLeastRequests; ++i) {
      EXPECT_EQ(Run(/*cached_tokens=*/32, offload).doubted_size(), 0) << i;
    }
  }
}

class TwoWorkersTest : public FrontendServerTest {
 protected:
  TwoWorkersTest() : FrontendServerTest(/*other_is_there=*/true) {}
};

TEST_F(TwoWorkersTest, WhatLiesOnTheDiskCountsForRequestsThatUseItAndForLess) {
  device_[0] = 0;
  disk_[0] = 64;
  device_[1] = 8;
  Run(8);
  EXPECT_EQ(other_.calls(), 1);
  Run(8, v1::CacheParams::DISK);
  EXPECT_EQ(worker_.calls(), 1);
  device_[1] = 24;
  Run(24, v1::CacheParams::DISK);
  EXPECT_EQ(other_.calls(), 2);
}

}  // namespace
}  // namespace kvist::services
