// The frontend role between a manager and a worker that say what a test wants.
#include "services/frontend/frontend_server.h"

#include <gtest/gtest.h>

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
  FrontendServerTest() {
    v1::WorkerInfo info;
    info.set_worker_id("w");
    info.set_incarnation(1);
    info.set_address(worker_.address());
    info.set_model_fingerprint("letters");
    info.set_context_tokens(512);
    info.set_connected(true);
    manager_.workers = {info};
    manager_.on_locate = [this, info](const v1::LocateRequest&, v1::LocateResponse* response) {
      v1::WorkerMatch& match = *response->add_workers();
      *match.mutable_worker() = info;
      match.set_matched_tokens(kPromised);
      return away_ ? grpc::Status(grpc::StatusCode::UNAVAILABLE, "away") : grpc::Status::OK;
    };
    FrontendServerOptions options;
    options.cache_manager_address = manager_.address();
    frontend_ = FrontendServer::Start(options).value();
    EXPECT_TRUE(frontend_->WaitUntilReady(std::chrono::seconds(60)));
    client_ = Client::Connect(frontend_->server().grpc_address(), std::chrono::seconds(60)).value();
  }

  // One request that finds so many cached tokens; the Locate that came before it.
  v1::LocateRequest Run(int64_t cached_tokens) {
    cached_tokens_ = cached_tokens;
    v1::GenerateRequest request;
    for (int64_t i = 0; i < kPromptTokens; ++i) request.mutable_ids()->add_ids(LetterId('a'));
    request.mutable_stop()->set_max_new_tokens(1);
    Generated generated;
    const absl::Status status = client_->Generate(request, {}, &generated);
    EXPECT_TRUE(status.ok()) << status;
    return manager_.calls().locates.back();
  }

  std::atomic<int64_t> cached_tokens_ = 0;
  std::atomic<bool> away_ = false;
  ScriptedWorker worker_{"w", [this](ScriptStream& stream) {
                           stream.Accept();
                           stream.Tokens(0, 1);
                           stream.Finish(v1::LENGTH, cached_tokens_);
                           return grpc::Status::OK;
                         }};
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

}  // namespace
}  // namespace kvist::services
