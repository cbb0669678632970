#include "services/runtime/role_server.h"

#include <gmock/gmock.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <gtest/gtest.h>

#include <future>
#include <string>

#include "common/base/status.h"
#include "proto/kvist/v1/worker.grpc.pb.h"
#include "services/runtime/status_map.h"
#include "tests/support/http_fetch.h"

namespace kvist::services {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

// GetLoad fails with a given status; Drain blocks until its call is cancelled.
class FakeWorker final : public v1::Worker::Service {
 public:
  absl::Status status;
  std::promise<void> drain_begun;

  grpc::Status GetLoad(grpc::ServerContext* context, const v1::GetLoadRequest*,
                       v1::GetLoadResponse*) override {
    return ToGrpc(status, context);
  }
  grpc::Status Drain(grpc::ServerContext* context, const v1::DrainRequest*,
                     v1::DrainResponse*) override {
    drain_begun.set_value();
    while (!context->IsCancelled()) std::this_thread::yield();
    return grpc::Status::CANCELLED;
  }
};

std::unique_ptr<RoleServer> StartServer(grpc::Service* service, RoleServerOptions options = {}) {
  options.role = "test";
  auto server = RoleServer::Start(options, {service});
  EXPECT_TRUE(server.ok()) << server.status();
  return std::move(server).value();
}

absl::Status GetLoad(const std::shared_ptr<grpc::Channel>& channel) {
  grpc::ClientContext context;
  context.set_wait_for_ready(true);
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
  v1::GetLoadResponse response;
  const grpc::Status status =
      v1::Worker::NewStub(channel)->GetLoad(&context, v1::GetLoadRequest(), &response);
  return FromGrpc(status, context);
}

TEST(RoleServerTest, ErrorsArriveWithCodeMessageAndDetails) {
  FakeWorker worker;
  const auto server = StartServer(&worker);
  const auto channel = ConnectTo(server->grpc_address());
  const absl::Status statuses[] = {
      absl::OkStatus(),
      InvalidField("temperature", "must not be NaN"),
      FieldOutOfRange("prompt_ids", "9000 tokens, the context has 8192"),
      Overloaded("queue is full", 250),
      Unavailable(ErrorReason::kDraining, "going away"),
      WithDetails(absl::AbortedError("worker lost"), {.resume_index = 0}),
      absl::NotFoundError("no such session"),
      absl::DeadlineExceededError("late"),
      absl::DataLossError("damaged \xc3\xa9\n"),
  };
  for (const absl::Status& sent : statuses) {
    worker.status = sent;
    const absl::Status got = GetLoad(channel);
    EXPECT_EQ(got.code(), sent.code());
    EXPECT_EQ(got.message(), sent.message());
    const ErrorDetails a = DetailsOf(got), b = DetailsOf(sent);
    EXPECT_EQ(a.reason, b.reason);
    EXPECT_EQ(a.field, b.field);
    EXPECT_EQ(a.retry_after_ms, b.retry_after_ms);
    EXPECT_EQ(a.resume_index, b.resume_index);
  }
}

TEST(RoleServerTest, InternalErrorsKeepTheirSecrets) {
  FakeWorker worker;
  const auto server = StartServer(&worker);
  worker.status = WithDetails(absl::InternalError("the secret is swordfish"), {.field = "secret"});
  const absl::Status first = GetLoad(server->InProcessChannel());
  EXPECT_EQ(first.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(std::string(first.message()).find("swordfish"), std::string::npos);
  EXPECT_EQ(DetailsOf(first).field, "");
  worker.status = absl::UnknownError("the secret is swordfish");
  const absl::Status second = GetLoad(server->InProcessChannel());
  EXPECT_EQ(second.code(), absl::StatusCode::kInternal);
  EXPECT_NE(first.message(), second.message());
}

TEST(RoleServerTest, HugeMessagesAndFieldsThatAreNoAsciiDoNotBreakTheConnection) {
  FakeWorker worker;
  const auto server = StartServer(&worker);
  const auto channel = ConnectTo(server->grpc_address());
  worker.status = InvalidField("f\xff\n", std::string(100'000, '\xff'));
  EXPECT_EQ(GetLoad(channel).code(), absl::StatusCode::kInvalidArgument);
  worker.status = absl::OkStatus();
  EXPECT_TRUE(GetLoad(channel).ok());
}

TEST(RoleServerTest, ASecondServerOnThePortIsAClearError) {
  FakeWorker worker, other;
  const auto server = StartServer(&worker);
  const auto refused =
      RoleServer::Start({.role = "test", .grpc_address = server->grpc_address()}, {&other});
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(std::string(refused.status().message()),
            "--grpc " + server->grpc_address() + ": the port is in use");
}

TEST(RoleServerTest, AnAddressThatIsNotHereIsNamedWithItsReason) {
  FakeWorker worker;
  // TEST-NET-1 of RFC 5737 is nobody's address.
  const auto refused = RoleServer::Start(
      {.role = "test", .grpc_address = "192.0.2.1:0", .insecure = true}, {&worker});
  ASSERT_FALSE(refused.ok());
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("--grpc 192.0.2.1:0"));
  EXPECT_EQ(std::string(refused.status().message()).find("in use"), std::string::npos);
}

TEST(RoleServerTest, UnprotectedAddressesNeedInsecure) {
  FakeWorker worker;
  EXPECT_EQ(RoleServer::Start({.grpc_address = "0.0.0.0:0"}, {&worker}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(RoleServer::Start({.metrics_address = "0.0.0.0:0"}, {&worker}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(RoleServer::Start({.grpc_address = "0.0.0.0:0", .insecure = true}, {&worker}).ok());
}

TEST(RoleServerTest, HealthAndReadinessAreOffUntilReady) {
  FakeWorker worker;
  const auto server = StartServer(&worker, {.metrics_address = "127.0.0.1:0"});
  EXPECT_EQ(test::HttpGet(server->metrics_address(), "/readyz").status, 503);
  server->SetReady(true);
  EXPECT_EQ(test::HttpGet(server->metrics_address(), "/readyz").status, 200);
  server->Shutdown(milliseconds(0));
  EXPECT_EQ(test::HttpGet(server->metrics_address(), "/readyz").status, 503);
  EXPECT_EQ(test::HttpGet(server->metrics_address(), "/healthz").status, 200);
  server->SetReady(true);
  EXPECT_EQ(test::HttpGet(server->metrics_address(), "/readyz").status, 503);
}

TEST(RoleServerTest, WithoutANetworkPortOnlyTheProcessItselfGetsIn) {
  FakeWorker worker;
  const auto server = StartServer(&worker, {.grpc_address = ""});
  EXPECT_EQ(server->grpc_address(), "");
  EXPECT_EQ(server->metrics_address(), "");
  EXPECT_TRUE(GetLoad(server->InProcessChannel()).ok());
}

TEST(RoleServerTest, ShutdownCancelsWhatOutlivesItsGrace) {
  FakeWorker worker;
  const auto server = StartServer(&worker);
  auto call = std::async(std::launch::async, [&] {
    grpc::ClientContext context;
    v1::DrainResponse response;
    return v1::Worker::NewStub(server->InProcessChannel())
        ->Drain(&context, v1::DrainRequest(), &response);
  });
  worker.drain_begun.get_future().wait();
  server->Shutdown(milliseconds(20));
  server->Shutdown(milliseconds(20));
  EXPECT_FALSE(call.get().ok());
}

TEST(RoleServerTest, MessagesBeyondTheLimitAreRefused) {
  FakeWorker worker;
  const auto server = StartServer(&worker, {.max_message_bytes = 1000});
  const auto send = [&](size_t bytes) {
    grpc::ClientContext context;
    v1::WorkerGenerateRequest request;
    request.set_session_id(std::string(bytes, 'x'));
    auto stream =
        v1::Worker::NewStub(ConnectTo(server->grpc_address()))->Generate(&context, request);
    v1::WorkerGenerateResponse response;
    while (stream->Read(&response)) {
    }
    return stream->Finish().error_code();
  };
  EXPECT_EQ(send(900), grpc::StatusCode::UNIMPLEMENTED);  // reached the service
  EXPECT_EQ(send(1001), grpc::StatusCode::RESOURCE_EXHAUSTED);
}

}  // namespace
}  // namespace kvist::services
