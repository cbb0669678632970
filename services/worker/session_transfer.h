// Blocks of sessions between the engine's pools and the records of session files: ExportSession and
// ImportSession of the Worker service.
#ifndef KVIST_SERVICES_WORKER_SESSION_TRANSFER_H_
#define KVIST_SERVICES_WORKER_SESSION_TRANSFER_H_

#include <grpcpp/grpcpp.h>

#include <cstdint>

#include "absl/status/status.h"
#include "proto/kvist/v1/worker.grpc.pb.h"
#include "services/runtime/metrics.h"
#include "worker/engine/engine.h"

namespace kvist::services {

// Holds the caller's thread while a call lasts; the engine's is taken for a slice of blocks at a
// time, between two steps. Errors as the proto says. Thread-safe.
class SessionTransfer {
 public:
  struct Options {
    worker::Engine* engine = nullptr;  // both outlive it
    WorkerMetrics* metrics = nullptr;
    uint64_t incarnation = 0;
  };
  explicit SessionTransfer(const Options& options) : options_(options) {}

  absl::Status Export(const v1::WorkerExportRequest& request,
                      grpc::ServerWriterInterface<v1::WorkerExportResponse>* writer);
  using ImportStream = grpc::internal::ReaderInterface<v1::WorkerImportRequest>;
  using ImportAnswers = grpc::internal::WriterInterface<v1::WorkerImportResponse>;
  absl::Status Import(ImportStream* reader, ImportAnswers* writer);

 private:
  absl::Status CheckIncarnation(uint64_t expected) const;

  const Options options_;
};

}  // namespace kvist::services

#endif  // KVIST_SERVICES_WORKER_SESSION_TRANSFER_H_
