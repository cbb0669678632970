#include "services/runtime/http_server.h"

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/logging.h"
#include "common/base/status.h"
#include "prometheus/text_serializer.h"

namespace kvist::services {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using tcp = boost::asio::ip::tcp;
using ErrorCode = boost::system::error_code;

// What all connections share. Single-threaded but for `ready`.
struct Shared {
  std::shared_ptr<prometheus::Registry> registry;
  std::chrono::milliseconds request_timeout{0};
  std::atomic<bool> ready{false};
  int connections = 0;
};

http::response<http::string_body> Answer(const http::request<http::empty_body>& request,
                                         const Shared& shared) {
  http::response<http::string_body> response(http::status::ok, request.version());
  response.keep_alive(request.keep_alive());
  response.set(http::field::content_type, "text/plain; charset=utf-8");
  if (request.method() != http::verb::get && request.method() != http::verb::head) {
    response.result(http::status::method_not_allowed);
    response.set(http::field::allow, "GET, HEAD");
    response.body() = "GET and HEAD only\n";
  } else if (request.target() == "/metrics") {
    response.set(http::field::content_type, "text/plain; version=0.0.4; charset=utf-8");
    response.body() = prometheus::TextSerializer().Serialize(shared.registry->Collect());
  } else if (request.target() == "/healthz") {
    response.body() = "alive\n";
  } else if (request.target() == "/readyz") {
    const bool ready = shared.ready.load();
    if (!ready) response.result(http::status::service_unavailable);
    response.body() = ready ? "ready\n" : "not ready\n";
  } else {
    response.result(http::status::not_found);
    response.body() = "/metrics, /healthz or /readyz\n";
  }
  response.prepare_payload();
  if (request.method() == http::verb::head) response.body().clear();
  return response;
}

// One connection: reads a request, answers, and again. Keeps itself alive by its pending operation.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(tcp::socket socket, Shared& shared) : stream_(std::move(socket)), shared_(shared) {
    ++shared_.connections;
  }
  ~Connection() { --shared_.connections; }

  void Read() {
    parser_.emplace();
    parser_->header_limit(kMaxHttpHeaderBytes);
    parser_->body_limit(0);
    stream_.expires_after(shared_.request_timeout);
    http::async_read(stream_, buffer_, *parser_,
                     [self = shared_from_this()](const ErrorCode& error, size_t) {
                       if (!error) self->Write();
                     });
  }

 private:
  void Write() {
    response_ = Answer(parser_->get(), shared_);
    stream_.expires_after(shared_.request_timeout);
    http::async_write(stream_, response_,
                      [self = shared_from_this()](const ErrorCode& error, size_t) {
                        if (!error && self->response_.keep_alive()) self->Read();
                      });
  }

  beast::tcp_stream stream_;
  Shared& shared_;
  beast::flat_static_buffer<kMaxHttpHeaderBytes> buffer_;
  std::optional<http::request_parser<http::empty_body>> parser_;
  http::response<http::string_body> response_;
};

class BeastHttpServer final : public HttpServer {
 public:
  explicit BeastHttpServer(const HttpServerOptions& options)
      : options_(options), acceptor_(context_), accept_retry_(context_) {
    shared_.registry = options.registry;
    shared_.request_timeout = options.request_timeout;
  }

  ~BeastHttpServer() override {
    context_.stop();
    if (thread_.joinable()) thread_.join();
  }

  absl::Status Listen() {
    ErrorCode error;
    tcp::resolver resolver(context_);
    const auto found = resolver.resolve(options_.address.host, absl::StrCat(options_.address.port),
                                        tcp::resolver::passive, error);
    if (error || found.empty()) return CannotBind(error);
    const tcp::endpoint endpoint = found.begin()->endpoint();
    acceptor_.open(endpoint.protocol(), error);
    if (!error) acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
    if (!error) acceptor_.bind(endpoint, error);
    if (!error) acceptor_.listen(asio::socket_base::max_listen_connections, error);
    if (error) return CannotBind(error);
    HostPort bound = options_.address;
    bound.port = acceptor_.local_endpoint(error).port();
    address_ = bound.ToString();
    Accept();
    thread_ = std::thread([this] { context_.run(); });
    return absl::OkStatus();
  }

  const std::string& address() const override { return address_; }
  void SetReady(bool ready) override { shared_.ready = ready; }

 private:
  absl::Status CannotBind(const ErrorCode& error) const {
    const std::string reason =
        error == asio::error::address_in_use ? std::string("the port is in use") : error.message();
    return absl::UnavailableError(
        absl::StrCat("--metrics ", options_.address.ToString(), ": ", reason));
  }

  void Accept() {
    acceptor_.async_accept([this](const ErrorCode& error, tcp::socket socket) {
      if (error) return RetryAccept(error);
      if (shared_.connections < options_.max_connections) {
        std::make_shared<Connection>(std::move(socket), shared_)->Read();
      }
      Accept();
    });
  }

  // Running out of file descriptors fails every accept at once: without a pause this thread would
  // spin.
  void RetryAccept(const ErrorCode& error) {
    if (error == asio::error::operation_aborted) return;
    LogWarning("metrics port: accept: {}", error.message());
    accept_retry_.expires_after(std::chrono::milliseconds(100));
    accept_retry_.async_wait([this](const ErrorCode& stopped) {
      if (!stopped) Accept();
    });
  }

  const HttpServerOptions options_;
  Shared shared_;  // outlives the context, whose pending operations hold the connections
  asio::io_context context_{1};
  tcp::acceptor acceptor_;
  asio::steady_timer accept_retry_;
  std::string address_;
  std::thread thread_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(const HttpServerOptions& options) {
  auto server = std::make_unique<BeastHttpServer>(options);
  KVIST_RETURN_IF_ERROR(server->Listen());
  return server;
}

}  // namespace kvist::services
