// The worker role: an engine behind gRPC, its event stream to the cache manager, its metrics.
#ifndef KVIST_SERVICES_WORKER_WORKER_SERVER_H_
#define KVIST_SERVICES_WORKER_WORKER_SERVER_H_

#include <chrono>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "common/base/clock.h"
#include "common/text/tokenizer.h"
#include "services/runtime/role_server.h"
#include "worker/backend/backend.h"
#include "worker/engine/engine.h"

namespace kvist::services {

struct WorkerServerOptions {
  std::string worker_id;              // empty: drawn
  std::string cache_manager_address;  // empty: none (tests); "host:port"
  std::string advertise_address;      // what Hello tells; empty: the gRPC address bound
  std::string model_path;             // for GetModel's vocabulary
  std::optional<text::Vocabulary>
      vocabulary;             // in place of the file's: model_path may then be empty
  std::string chat_template;  // name of a chat format; empty: recognise the file's
  // A directory for blocks of idle sessions, of this worker alone; empty: none. And its budget.
  std::string offload_directory;
  int64_t offload_bytes = 0;
  worker::EngineOptions engine;
  const Clock* clock = nullptr;  // outlives the server; null: the machine's
  RoleServerOptions server;
};

// Thread-safe.
class WorkerServer {
 public:
  // Starts the engine and serves; ready at once, with or without a manager. Errors as
  // RoleServer::Start, and of the vocabulary (with neither a path nor a vocabulary, GetModel has
  // none). INVALID_ARGUMENT: worker_id, a vocabulary that has not the model's number of tokens, and
  // as DiskStore::Open.
  static absl::StatusOr<std::unique_ptr<WorkerServer>> Start(
      const WorkerServerOptions& options, std::unique_ptr<worker::Backend> backend);
  virtual ~WorkerServer() = default;
  virtual RoleServer& server() = 0;
  virtual worker::Engine& engine() = 0;
  virtual const std::string& worker_id() const = 0;
  // Drains for up to `grace`, then stops. Idempotent.
  virtual void Shutdown(std::chrono::milliseconds grace) = 0;
};

}  // namespace kvist::services

#endif  // KVIST_SERVICES_WORKER_WORKER_SERVER_H_
