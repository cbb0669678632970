// The Inference service over gRPC.
#ifndef KVIST_SERVICES_FRONTEND_INFERENCE_SERVICE_H_
#define KVIST_SERVICES_FRONTEND_INFERENCE_SERVICE_H_

#include <chrono>

#include "proto/kvist/v1/inference.grpc.pb.h"
#include "services/frontend/client_stream.h"
#include "services/frontend/frontend_state.h"

namespace kvist::services {

// Thread-safe. Calls of Generate and Resume hold a thread each; admission bounds them.
class InferenceService final : public v1::Inference::Service {
 public:
  struct Options {
    std::chrono::milliseconds default_deadline;
    std::chrono::milliseconds slow_client_patience;
  };
  // REQUIRES: state outlives it.
  InferenceService(FrontendState* state, const Options& options);

  grpc::Status Generate(grpc::ServerContext* context, const v1::GenerateRequest* request,
                        grpc::ServerWriter<v1::GenerateResponse>* writer) override;
  grpc::Status Resume(grpc::ServerContext* context, const v1::ResumeRequest* request,
                      grpc::ServerWriter<v1::GenerateResponse>* writer) override;
  grpc::Status Tokenize(grpc::ServerContext* context, const v1::TokenizeRequest* request,
                        v1::TokenizeResponse* response) override;
  grpc::Status Detokenize(grpc::ServerContext* context, const v1::DetokenizeRequest* request,
                          v1::DetokenizeResponse* response) override;
  grpc::Status ListModels(grpc::ServerContext* context, const v1::ListModelsRequest* request,
                          v1::ListModelsResponse* response) override;

 private:
  MonotonicTime DeadlineOf(const grpc::ServerContext& context) const;
  absl::Status DoTokenize(const v1::TokenizeRequest& request, v1::TokenizeResponse* response) const;
  absl::Status DoDetokenize(const v1::DetokenizeRequest& request,
                            v1::DetokenizeResponse* response) const;

  FrontendState* const state_;
  const Options options_;
  SlowClientWatch slow_clients_;
};

}  // namespace kvist::services

#endif  // KVIST_SERVICES_FRONTEND_INFERENCE_SERVICE_H_
