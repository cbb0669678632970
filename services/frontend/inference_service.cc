#include "services/frontend/inference_service.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "services/frontend/generation.h"
#include "services/frontend/limits.h"
#include "services/frontend/validate.h"
#include "services/runtime/status_map.h"

namespace kvist::services {
namespace {

// The caller, from its credential.
Principal PrincipalOf(const grpc::ServerContext& /*context*/) { return {}; }

}  // namespace

InferenceService::InferenceService(FrontendState* state, const Options& options)
    : state_(state),
      options_(options),
      slow_clients_(options.slow_client_patience, &state->clock) {}

MonotonicTime InferenceService::DeadlineOf(const grpc::ServerContext& context) const {
  const MonotonicTime now = state_->clock.Now();
  const auto deadline = context.deadline();
  // No deadline is the end of time.
  if (deadline == std::chrono::system_clock::time_point::max()) {
    return now + options_.default_deadline;
  }
  return now + std::chrono::duration_cast<std::chrono::microseconds>(
                   deadline - std::chrono::system_clock::now());
}

grpc::Status InferenceService::Generate(grpc::ServerContext* context,
                                        const v1::GenerateRequest* request,
                                        grpc::ServerWriter<v1::GenerateResponse>* writer) {
  SlowClientWatch::Stream client(&slow_clients_, context, writer);
  return ToGrpc(RunGenerate(*state_, *request, PrincipalOf(*context), DeadlineOf(*context), client),
                context);
}

grpc::Status InferenceService::Resume(grpc::ServerContext* context,
                                      const v1::ResumeRequest* request,
                                      grpc::ServerWriter<v1::GenerateResponse>* writer) {
  SlowClientWatch::Stream client(&slow_clients_, context, writer);
  return ToGrpc(RunResume(*state_, *request, PrincipalOf(*context), DeadlineOf(*context), client),
                context);
}

grpc::Status InferenceService::Tokenize(grpc::ServerContext* context,
                                        const v1::TokenizeRequest* request,
                                        v1::TokenizeResponse* response) {
  return ToGrpc(DoTokenize(*request, response), context);
}

absl::Status InferenceService::DoTokenize(const v1::TokenizeRequest& request,
                                          v1::TokenizeResponse* response) const {
  KVIST_RETURN_IF_ERROR(ValidateText("text", request.text()));
  KVIST_ASSIGN_OR_RETURN(const auto model, state_->directory.FindModel(request.model()));
  const text::Tokenizer& tokenizer = model->tokenizer();
  std::vector<int32_t> ids = tokenizer.Encode(request.text(), request.recognize_control()
                                                                  ? text::ControlTokens::kRecognised
                                                                  : text::ControlTokens::kPlain);
  const auto& bos = tokenizer.vocabulary().bos_id;
  if (request.add_bos() && bos.has_value()) ids.insert(ids.begin(), *bos);
  response->mutable_token_ids()->Add(ids.begin(), ids.end());
  for (const int32_t id : ids) response->add_pieces(std::string(tokenizer.TokenBytes(id)));
  return absl::OkStatus();
}

grpc::Status InferenceService::Detokenize(grpc::ServerContext* context,
                                          const v1::DetokenizeRequest* request,
                                          v1::DetokenizeResponse* response) {
  return ToGrpc(DoDetokenize(*request, response), context);
}

absl::Status InferenceService::DoDetokenize(const v1::DetokenizeRequest& request,
                                            v1::DetokenizeResponse* response) const {
  const std::vector<int32_t> ids(request.token_ids().begin(), request.token_ids().end());
  if (ids.size() > kMaxDetokenizeIds) {
    return FieldOutOfRange("token_ids",
                           absl::StrCat("at most ", kMaxDetokenizeIds, " are allowed"));
  }
  KVIST_ASSIGN_OR_RETURN(const auto model, state_->directory.FindModel(request.model()));
  KVIST_RETURN_IF_ERROR(ValidateIds("token_ids", ids, model->limits().vocab));
  response->set_text(model->tokenizer().Decode(ids));
  return absl::OkStatus();
}

grpc::Status InferenceService::ListModels(grpc::ServerContext* /*context*/,
                                          const v1::ListModelsRequest* /*request*/,
                                          v1::ListModelsResponse* response) {
  for (v1::Model& model : state_->directory.Models()) *response->add_models() = std::move(model);
  return grpc::Status::OK;
}

}  // namespace kvist::services
