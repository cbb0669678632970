// The C++ client: one connection to a Kvist frontend.
#ifndef KVIST_SERVICES_CLIENT_CLIENT_H_
#define KVIST_SERVICES_CLIENT_CLIENT_H_

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/mutex.h"
#include "proto/kvist/v1/cache_manager.grpc.pb.h"
#include "proto/kvist/v1/inference.grpc.pb.h"
#include "proto/kvist/v1/session.grpc.pb.h"

namespace kvist::services {

// Cancels a call from another thread. One at a time uses it. Thread-safe.
class Cancellation {
 public:
  // The call in progress ends with CANCELLED; a call begun later, too, until Reset.
  void Cancel() ABSL_LOCKS_EXCLUDED(mutex_);
  void Reset() ABSL_LOCKS_EXCLUDED(mutex_);
  bool cancelled() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  friend class Client;
  void Attach(grpc::ClientContext* context) ABSL_LOCKS_EXCLUDED(mutex_);
  void Detach() ABSL_LOCKS_EXCLUDED(mutex_);

  mutable Mutex mutex_;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  grpc::ClientContext* context_ ABSL_GUARDED_BY(mutex_) = nullptr;
};

struct GenerateOptions {
  std::function<void(const v1::Started&)> on_started;  // each may be empty
  std::function<void(const v1::Progress&)> on_progress;
  std::function<void(const v1::Delta&)> on_delta;
  std::chrono::milliseconds timeout{0};  // 0: the server's
  Cancellation* cancellation = nullptr;
};

// A session on its way into a file.
struct ExportOptions {
  std::function<void(const v1::SessionFileFacts&)> on_facts;  // first; may be empty
  std::function<bool(const std::string&)> on_data;  // the file's next bytes; false: no more
  Cancellation* cancellation = nullptr;
};
// A file on its way into a session.
struct ImportOptions {
  // Sets the file's next bytes, at most 1 MiB; none: it is at its end.
  std::function<void(std::string*)> next_data;
  Cancellation* cancellation = nullptr;
};

// One of several answers.
struct GeneratedSample {
  std::string text;
  std::vector<v1::Token> tokens;
  v1::SampleFinished finished;  // reason unspecified if the stream was cut
};

// What came of a generation, also of one that ended early.
struct Generated {
  std::string text;  // of several samples: of sample 0
  std::vector<v1::Token> tokens;
  std::vector<GeneratedSample> samples;  // where several were asked for: all, sample 0 included
  v1::Started started;
  v1::Finished finished;  // reason unspecified if the stream was cut
};

// Thread-safe; calls of several threads share the connection. Errors carry ErrorDetails
// (common/base/status.h).
class Client {
 public:
  // Waits up to `timeout` for a connection. INVALID_ARGUMENT for an address that is none;
  // UNAVAILABLE if nobody listens there.
  static absl::StatusOr<std::unique_ptr<Client>> Connect(const std::string& endpoint,
                                                         std::chrono::milliseconds timeout);
  // Over a channel that exists (tests, in process).
  explicit Client(std::shared_ptr<grpc::Channel> channel);

  // Streams to the callbacks and gathers in `*generated`, which is filled as far as it came
  // whatever the status.
  absl::Status Generate(const v1::GenerateRequest& request, const GenerateOptions& options,
                        Generated* generated);
  // Goes on with a session's turn whose stream was cut.
  absl::Status Resume(const v1::ResumeRequest& request, const GenerateOptions& options,
                      Generated* generated);

  absl::StatusOr<v1::ListModelsResponse> ListModels();
  absl::StatusOr<v1::Session> CreateSession(const v1::CreateSessionRequest& request);
  absl::StatusOr<v1::Session> GetSession(const v1::GetSessionRequest& request);
  // All pages.
  absl::StatusOr<std::vector<v1::Session>> ListSessions();
  absl::StatusOr<v1::Session> ResetSession(const v1::ResetSessionRequest& request);
  absl::StatusOr<v1::Session> TruncateSession(const v1::TruncateSessionRequest& request);
  absl::StatusOr<v1::Session> ForkSession(const v1::ForkSessionRequest& request);
  absl::Status DeleteSession(const std::string& id);
  // CANCELLED too where on_data wanted no more.
  absl::Status ExportSession(const std::string& id, const ExportOptions& options);
  // `id` empty: the file's.
  absl::StatusOr<v1::ImportSessionResponse> ImportSession(const std::string& id,
                                                          const ImportOptions& options);

  // Of one session, or of all (all pages) for an empty id.
  absl::StatusOr<std::vector<v1::SessionMemory>> SessionMemoryOf(const std::string& id);
  // The first blocks of a worker, at most `limit`.
  absl::StatusOr<std::vector<v1::BlockInfo>> ListBlocks(const std::string& worker_id, size_t limit);
  absl::StatusOr<v1::GetStatsResponse> GetStats();
  absl::StatusOr<v1::EvictResponse> Evict(const v1::EvictRequest& request);

 private:
  template <typename Reader>
  absl::Status ReadAll(Reader reader, grpc::ClientContext& context, const GenerateOptions& options,
                       Generated* generated);

  std::unique_ptr<v1::Inference::Stub> inference_;
  std::unique_ptr<v1::Sessions::Stub> sessions_;
  std::unique_ptr<v1::CacheManager::Stub> manager_;
};

// What a person can do about `status`: a sentence, or nothing.
std::string AdviceFor(const absl::Status& status);

}  // namespace kvist::services

#endif  // KVIST_SERVICES_CLIENT_CLIENT_H_
