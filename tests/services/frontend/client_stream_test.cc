#include "services/frontend/client_stream.h"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <string>

#include "proto/kvist/v1/inference.grpc.pb.h"
#include "services/runtime/role_server.h"

namespace kvist::services {
namespace {

using std::chrono::milliseconds;

// Streams megabytes to whoever calls, under the watch.
class Flood final : public v1::Inference::Service {
 public:
  Flood() { server_ = RoleServer::Start({.role = "frontend"}, {this}).value(); }
  ~Flood() override { Stop(); }
  const std::string& address() const { return server_->grpc_address(); }
  void Stop() { server_->Shutdown(milliseconds(0)); }

  grpc::Status Generate(grpc::ServerContext* context, const v1::GenerateRequest*,
                        grpc::ServerWriter<v1::GenerateResponse>* writer) override {
    SlowClientWatch::Stream stream(&watch_, context, writer);
    v1::GenerateResponse response;
    response.mutable_delta()->set_text(std::string(1 << 16, 'x'));
    int written = 0;
    while (written < kMessages && stream.Write(response)) ++written;
    all_written = written == kMessages;
    closed_as_slow = stream.closed_as_slow();
    ended = true;
    return grpc::Status::OK;
  }

  static constexpr int kMessages = 500;
  std::atomic<bool> ended = false;
  std::atomic<bool> all_written = false;
  std::atomic<bool> closed_as_slow = false;

 private:
  SystemClock clock_;
  SlowClientWatch watch_{milliseconds(300), &clock_};
  std::unique_ptr<RoleServer> server_;
};

TEST(ClientStreamTest, ClientThatDoesNotReadIsClosed) {
  Flood flood;
  const auto stub = v1::Inference::NewStub(ConnectTo(flood.address()));
  grpc::ClientContext context;
  const auto reader = stub->Generate(&context, v1::GenerateRequest());
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  Mutex mutex;
  CondVar never;
  while (!flood.ended && std::chrono::steady_clock::now() < until) {
    MutexLock lock(mutex);
    never.WaitUntil(mutex, std::chrono::steady_clock::now() + milliseconds(20));
  }
  EXPECT_TRUE(flood.ended);
  EXPECT_TRUE(flood.closed_as_slow);
  EXPECT_FALSE(flood.all_written);
  context.TryCancel();
  reader->Finish();
}

TEST(ClientStreamTest, ClientThatReadsGetsEverything) {
  Flood flood;
  const auto stub = v1::Inference::NewStub(ConnectTo(flood.address()));
  grpc::ClientContext context;
  const auto reader = stub->Generate(&context, v1::GenerateRequest());
  v1::GenerateResponse response;
  int read = 0;
  while (reader->Read(&response)) ++read;
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(read, Flood::kMessages);
  EXPECT_FALSE(flood.closed_as_slow);
}

}  // namespace
}  // namespace kvist::services
