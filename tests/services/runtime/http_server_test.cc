#include "services/runtime/http_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/write.hpp>
#include <list>
#include <string>

#include "prometheus/gauge.h"
#include "tests/support/http_fetch.h"

namespace kvist::services {
namespace {

using ::testing::HasSubstr;
namespace asio = boost::asio;

std::unique_ptr<HttpServer> StartServer(HttpServerOptions options) {
  options.address = {.host = "127.0.0.1", .port = 0};
  if (options.registry == nullptr) options.registry = std::make_shared<prometheus::Registry>();
  auto server = HttpServer::Start(options);
  EXPECT_TRUE(server.ok()) << server.status();
  return std::move(server).value();
}

TEST(HttpServerTest, ReadinessFollowsTheRoleAndLivenessDoesNot) {
  const auto server = StartServer({});
  EXPECT_EQ(test::HttpGet(server->address(), "/healthz").status, 200);
  EXPECT_EQ(test::HttpGet(server->address(), "/readyz").status, 503);
  server->SetReady(true);
  EXPECT_EQ(test::HttpGet(server->address(), "/readyz").status, 200);
  server->SetReady(false);
  EXPECT_EQ(test::HttpGet(server->address(), "/readyz").status, 503);
  EXPECT_EQ(test::HttpGet(server->address(), "/healthz").status, 200);
}

TEST(HttpServerTest, ServesTheRegistryAsText) {
  auto registry = std::make_shared<prometheus::Registry>();
  prometheus::BuildGauge().Name("answer").Help("h").Register(*registry).Add({}).Set(42);
  const auto server = StartServer({.registry = registry});
  const test::HttpAnswer answer = test::HttpGet(server->address(), "/metrics");
  EXPECT_EQ(answer.status, 200);
  EXPECT_THAT(answer.body, HasSubstr("answer 42"));
  EXPECT_THAT(answer.whole, HasSubstr("version=0.0.4"));
}

TEST(HttpServerTest, OtherTargetsMethodsAndBodiesAreRefused) {
  const auto server = StartServer({});
  EXPECT_EQ(test::HttpGet(server->address(), "/").status, 404);
  EXPECT_EQ(test::HttpGet(server->address(), "/metrics/x").status, 404);
  EXPECT_EQ(test::HttpSend(server->address(),
                           "DELETE /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                .status,
            405);
  EXPECT_NE(
      test::HttpSend(server->address(),
                     "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n123456789")
          .status,
      200);
  const test::HttpAnswer head = test::HttpSend(
      server->address(), "HEAD /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  EXPECT_EQ(head.status, 200);
  EXPECT_EQ(head.body, "");
}

TEST(HttpServerTest, AHeaderBeyondItsLimitClosesOnlyItsOwnConnection) {
  const auto server = StartServer({});
  const std::string start = "GET /healthz HTTP/1.1\r\nConnection: close\r\nX: ";
  const std::string fits(kMaxHttpHeaderBytes - start.size() - 64, 'a');
  EXPECT_EQ(test::HttpSend(server->address(), start + fits + "\r\n\r\n").status, 200);
  const std::string tooLong(kMaxHttpHeaderBytes + 1, 'a');
  EXPECT_EQ(test::HttpSend(server->address(), start + tooLong + "\r\n\r\n").status, 0);
  EXPECT_EQ(test::HttpSend(server->address(), "\x16\x03\x01 nonsense\r\n\r\n").status, 0);
  EXPECT_EQ(test::HttpGet(server->address(), "/healthz").status, 200);
}

TEST(HttpServerTest, ConnectionsBeyondTheLimitAreClosedAndOthersServed) {
  const auto server = StartServer({.max_connections = 3});
  const std::string& address = server->address();
  const asio::ip::tcp::endpoint endpoint(
      asio::ip::make_address("127.0.0.1"),
      static_cast<uint16_t>(std::stoi(address.substr(address.rfind(':') + 1))));
  asio::io_context context;
  std::list<asio::ip::tcp::socket> open;
  const std::string request = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
  char first = 0;
  for (int i = 0; i < 3; ++i) {  // an answer proves that the connection was accepted
    open.emplace_back(context).connect(endpoint);
    asio::write(open.back(), asio::buffer(request));
    ASSERT_EQ(asio::read(open.back(), asio::buffer(&first, 1)), 1u);
  }
  EXPECT_EQ(test::HttpGet(address, "/healthz").status, 0);
  open.clear();
  // The server notices the closed connections on its own thread.
  int status = 0;
  for (int tries = 0; tries < 10'000 && status != 200; ++tries) {
    status = test::HttpGet(address, "/healthz").status;
  }
  EXPECT_EQ(status, 200);
}

TEST(HttpServerTest, ASilentConnectionIsClosedWhenItsTimeIsUp) {
  const auto server = StartServer({.request_timeout = std::chrono::milliseconds(50)});
  EXPECT_EQ(test::HttpSend(server->address(), "GET /hea").status, 0);
}

TEST(HttpServerTest, APortInUseIsNamed) {
  const auto server = StartServer({});
  HttpServerOptions second;
  second.registry = std::make_shared<prometheus::Registry>();
  second.address = ParseHostPort(server->address(), "x").value();
  const auto refused = HttpServer::Start(second);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("--metrics " + server->address()));
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("in use"));
}

}  // namespace
}  // namespace kvist::services
