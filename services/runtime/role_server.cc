#include "services/runtime/role_server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>
#include <netdb.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/logging.h"
#include "common/base/mutex.h"
#include "common/base/status.h"
#include "services/runtime/address.h"
#include "services/runtime/http_server.h"

namespace kvist::services {
namespace {

constexpr int kKeepaliveTimeMs = 10'000;
constexpr int kKeepaliveTimeoutMs = 5'000;
// Half of the clients' interval, so that jitter does not make the server think of abuse.
constexpr int kMinPingIntervalMs = kKeepaliveTimeMs / 2;
constexpr int kMaxStreamsPerConnection = 1024;

// The soft limit of open files becomes the hard one: gRPC 1.51 that ran out once never accepts
// again (CVE-2023-4785).
void RaiseFileLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == limit.rlim_max) return;
  limit.rlim_cur = limit.rlim_max;
  if (setrlimit(RLIMIT_NOFILE, &limit) != 0) {
    LogWarning("cannot raise the limit of open files: {}", std::strerror(errno));
  }
}

// Why binding to `address` fails: gRPC does not tell.
std::string BindError(const HostPort& address) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  const int resolved =
      getaddrinfo(address.host.c_str(), absl::StrCat(address.port).c_str(), &hints, &found);
  if (resolved != 0) return gai_strerror(resolved);
  std::string reason = "the port is in use";
  const int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int on = 1;
  if (fd >= 0) {
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (bind(fd, found->ai_addr, found->ai_addrlen) != 0 && errno != EADDRINUSE) {
      reason = std::strerror(errno);
    }
    close(fd);
  }
  freeaddrinfo(found);
  return reason;
}

// gRPC writes its own lines to stderr for what every caller here gets as a status. GRPC_VERBOSITY
// brings them back.
void QuietGrpcLogs() {
  static const int once = setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);
  (void)once;
}

void SetServerOptions(const RoleServerOptions& options, grpc::ServerBuilder& builder) {
  // Two servers on one port would share its clients at random.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveTimeMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             kMinPingIntervalMs);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxStreamsPerConnection);
  builder.SetMaxReceiveMessageSize(options.max_message_bytes);
  builder.SetMaxSendMessageSize(options.max_message_bytes);
  grpc::ResourceQuota quota(options.role);
  quota.SetMaxThreads(options.max_threads);
  builder.SetResourceQuota(quota);
}

class GrpcRoleServer final : public RoleServer {
 public:
  explicit GrpcRoleServer(const RoleServerOptions& options) : options_(options) {}
  ~GrpcRoleServer() override { Shutdown(std::chrono::milliseconds(0)); }

  absl::Status Listen(const std::vector<grpc::Service*>& services) {
    QuietGrpcLogs();
    RaiseFileLimit();
    KVIST_RETURN_IF_ERROR(ListenHttp());
    static const bool plugins = [] {  // process-wide switches of gRPC
      grpc::EnableDefaultHealthCheckService(true);
      grpc::reflection::InitProtoReflectionServerBuilderPlugin();
      return true;
    }();
    (void)plugins;
    grpc::ServerBuilder builder;
    SetServerOptions(options_, builder);
    HostPort address;
    int port = 0;
    if (!options_.grpc_address.empty()) {
      KVIST_ASSIGN_OR_RETURN(
          address, ParseListenAddress(options_.grpc_address, "--grpc", options_.insecure));
      builder.AddListeningPort(options_.grpc_address, grpc::InsecureServerCredentials(), &port);
    }
    for (grpc::Service* service : services) builder.RegisterService(service);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr || (!options_.grpc_address.empty() && port == 0)) {
      return absl::UnavailableError(
          absl::StrCat("--grpc ", options_.grpc_address, ": ", BindError(address)));
    }
    if (!options_.grpc_address.empty()) {
      address.port = static_cast<uint16_t>(port);
      grpc_address_ = address.ToString();
    }
    SetReady(false);
    return absl::OkStatus();
  }

  const std::string& grpc_address() const override { return grpc_address_; }
  const std::string& metrics_address() const override { return metrics_address_; }

  void SetReady(bool ready) override {
    MutexLock lock(mutex_);
    if (stopped_) return;
    server_->GetHealthCheckService()->SetServingStatus(ready);
    if (http_ != nullptr) http_->SetReady(ready);
  }

  std::shared_ptr<grpc::Channel> InProcessChannel() override {
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(options_.max_message_bytes);
    arguments.SetMaxSendMessageSize(options_.max_message_bytes);
    return server_->InProcessChannel(arguments);
  }

  void Shutdown(std::chrono::milliseconds grace) override {
    {
      MutexLock lock(mutex_);
      if (stopped_) return;
      stopped_ = true;
      if (http_ != nullptr) http_->SetReady(false);
    }
    if (server_ == nullptr) return;
    server_->GetHealthCheckService()->SetServingStatus(false);
    server_->Shutdown(std::chrono::system_clock::now() + grace);
    server_->Wait();
  }

 private:
  absl::Status ListenHttp() {
    if (options_.metrics_address.empty()) return absl::OkStatus();
    HttpServerOptions http;
    KVIST_ASSIGN_OR_RETURN(
        http.address, ParseListenAddress(options_.metrics_address, "--metrics", options_.insecure));
    http.registry = options_.registry;
    if (http.registry == nullptr) http.registry = std::make_shared<prometheus::Registry>();
    KVIST_ASSIGN_OR_RETURN(http_, HttpServer::Start(http));
    metrics_address_ = http_->address();
    return absl::OkStatus();
  }

  const RoleServerOptions options_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<HttpServer> http_;
  std::string grpc_address_;
  std::string metrics_address_;
  Mutex mutex_;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<RoleServer>> RoleServer::Start(
    const RoleServerOptions& options, const std::vector<grpc::Service*>& services) {
  auto server = std::make_unique<GrpcRoleServer>(options);
  KVIST_RETURN_IF_ERROR(server->Listen(services));
  return server;
}

std::shared_ptr<grpc::Channel> ConnectTo(const std::string& address) {
  QuietGrpcLogs();
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 1000);  // the time that one attempt gets
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveTimeMs);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  // A connection of its own: a shared one would bring another channel's backoff with it.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  // Roles reach each other directly, whatever proxy the shell names for the web.
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetMaxReceiveMessageSize(RoleServerOptions().max_message_bytes);
  arguments.SetMaxSendMessageSize(RoleServerOptions().max_message_bytes);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

}  // namespace kvist::services
