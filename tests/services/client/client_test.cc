#include "services/client/client.h"

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "services/runtime/role_server.h"
#include "services/runtime/status_map.h"

namespace kvist::services {
namespace {

using Writer = grpc::ServerWriter<v1::GenerateResponse>;
using Script = std::function<grpc::Status(grpc::ServerContext*, Writer*)>;

// Answers Generate by a script, and lists 2,500 sessions in pages.
class ScriptedFrontend final : public v1::Inference::Service, public v1::Sessions::Service {
 public:
  explicit ScriptedFrontend(Script script) : script_(std::move(script)) {
    server_ = RoleServer::Start({.role = "frontend"}, {static_cast<v1::Inference::Service*>(this),
                                                       static_cast<v1::Sessions::Service*>(this)})
                  .value();
  }
  ~ScriptedFrontend() override { server_->Shutdown(std::chrono::milliseconds(0)); }

  const std::string& address() const { return server_->grpc_address(); }

  grpc::Status Generate(grpc::ServerContext* context, const v1::GenerateRequest*,
                        Writer* writer) override {
    return script_(context, writer);
  }
  grpc::Status List(grpc::ServerContext*, const v1::ListSessionsRequest* request,
                    v1::ListSessionsResponse* response) override {
    const int from = request->page_token().empty() ? 0 : std::stoi(request->page_token());
    for (int i = from; i < std::min(from + request->page_size(), 2500); ++i) {
      response->add_sessions()->set_id(absl::StrCat("s", i));
    }
    const int next = from + request->page_size();
    if (next < 2500) response->set_next_page_token(absl::StrCat(next));
    return grpc::Status::OK;
  }

 private:
  const Script script_;
  std::unique_ptr<RoleServer> server_;
};

std::unique_ptr<Client> ConnectedTo(const ScriptedFrontend& frontend) {
  return Client::Connect(frontend.address(), std::chrono::seconds(10)).value();
}

void SendText(Writer* writer, const std::string& text) {
  v1::GenerateResponse response;
  response.mutable_delta()->set_text(text);
  response.mutable_delta()->add_tokens()->set_id(1);
  writer->Write(response);
}

void SendEnd(Writer* writer) {
  v1::GenerateResponse response;
  response.mutable_finished()->set_reason(v1::LENGTH);
  writer->Write(response);
}

TEST(ClientTest, GathersWhatItStreams) {
  ScriptedFrontend frontend([](grpc::ServerContext*, Writer* writer) {
    SendText(writer, "red ");
    SendText(writer, "cat");
    SendEnd(writer);
    return grpc::Status::OK;
  });
  Generated generated;
  std::string streamed;
  GenerateOptions options;
  options.on_delta = [&](const v1::Delta& delta) { streamed += delta.text(); };
  EXPECT_TRUE(ConnectedTo(frontend)->Generate({}, options, &generated).ok());
  EXPECT_EQ(generated.text, "red cat");
  EXPECT_EQ(streamed, "red cat");
  EXPECT_EQ(generated.tokens.size(), 2u);
  EXPECT_EQ(generated.finished.reason(), v1::LENGTH);
}

TEST(ClientTest, ErrorKeepsWhatCameBeforeAndItsDetails) {
  ScriptedFrontend frontend([](grpc::ServerContext* context, Writer* writer) {
    SendText(writer, "red");
    return ToGrpc(WithDetails(absl::AbortedError("lost"), {.resume_index = 1}), context);
  });
  Generated generated;
  const absl::Status status = ConnectedTo(frontend)->Generate({}, {}, &generated);
  EXPECT_EQ(status.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(DetailsOf(status).resume_index, 1);
  EXPECT_EQ(generated.text, "red");
}

TEST(ClientTest, StreamWithoutItsLastMessageIsNoSuccess) {
  ScriptedFrontend frontend([](grpc::ServerContext*, Writer* writer) {
    SendText(writer, "red");
    return grpc::Status::OK;
  });
  Generated generated;
  EXPECT_EQ(ConnectedTo(frontend)->Generate({}, {}, &generated).code(),
            absl::StatusCode::kDataLoss);
}

TEST(ClientTest, CancellationEndsTheCallAndHoldsUntilReset) {
  ScriptedFrontend frontend([](grpc::ServerContext* context, Writer* writer) {
    SendText(writer, "red");
    while (!context->IsCancelled() && writer->Write(v1::GenerateResponse())) {
    }
    return grpc::Status::CANCELLED;
  });
  const auto client = ConnectedTo(frontend);
  Cancellation cancellation;
  GenerateOptions options;
  options.cancellation = &cancellation;
  options.on_delta = [&](const v1::Delta&) { cancellation.Cancel(); };
  Generated generated;
  EXPECT_EQ(client->Generate({}, options, &generated).code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(generated.text, "red");
  options.on_delta = nullptr;
  EXPECT_EQ(client->Generate({}, options, &generated).code(), absl::StatusCode::kCancelled);
}

TEST(ClientTest, ListsAllPages) {
  ScriptedFrontend frontend([](grpc::ServerContext*, Writer*) { return grpc::Status::OK; });
  const auto sessions = ConnectedTo(frontend)->ListSessions();
  ASSERT_TRUE(sessions.ok());
  ASSERT_EQ(sessions->size(), 2500u);
  EXPECT_EQ(sessions->back().id(), "s2499");
}

TEST(ClientTest, NobodyThereIsKnownBeforeTheTimeout) {
  const auto start = std::chrono::steady_clock::now();
  const auto client = Client::Connect("127.0.0.1:1", std::chrono::seconds(60));
  EXPECT_EQ(client.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(30));
  EXPECT_NE(AdviceFor(client.status()).find("kvist serve"), std::string::npos);
}

TEST(ClientTest, AddressThatIsNoneIsRefused) {
  EXPECT_EQ(Client::Connect("nonsense", std::chrono::seconds(1)).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(ClientTest, AdviceFollowsTheReason) {
  EXPECT_EQ(AdviceFor(Overloaded("full", 5000)), "Try again in 5 s.");
  EXPECT_NE(AdviceFor(Unavailable(ErrorReason::kNoWorker, "x")).find("kvist worker"),
            std::string::npos);
  EXPECT_NE(AdviceFor(Unavailable(ErrorReason::kNoManager, "x")).find("kvist cache-manager"),
            std::string::npos);
  EXPECT_EQ(AdviceFor(InvalidField("x", "y")), "");
}

}  // namespace
}  // namespace kvist::services
