// A model as the frontend needs it: its text side and its limits, from a worker's GetModel.
#ifndef KVIST_SERVICES_FRONTEND_SERVED_MODEL_H_
#define KVIST_SERVICES_FRONTEND_SERVED_MODEL_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/text/chat_template.h"
#include "common/text/tokenizer.h"
#include "proto/kvist/v1/inference.pb.h"
#include "proto/kvist/v1/worker.pb.h"
#include "services/frontend/request.h"
#include "services/frontend/validate.h"

namespace kvist::services {

// What one worker says that it serves. `vocab`: of its model. INVALID_ARGUMENT naming what is
// wrong.
absl::StatusOr<ModelLimits> LimitsFromWire(const v1::GetModelResponse& response, int64_t vocab);
// `limits` become what at least one of the two serves; what is first in them stays so.
void Widen(const ModelLimits& other, ModelLimits& limits);

// Immutable; Thread-safe.
class ServedModel {
 public:
  // Checks vocabulary and defaults as data of another process. INVALID_ARGUMENT naming what is
  // wrong.
  static absl::StatusOr<std::shared_ptr<const ServedModel>> Create(
      const v1::GetModelResponse& response);

  // The ids that a request appends to `history` (empty: the conversation's beginning, BOS included
  // where the model wants it). INVALID_ARGUMENT (field "prompt.chat") for roles in an impossible
  // order, or if the model has no known chat template.
  absl::StatusOr<std::vector<int32_t>> EncodePrompt(const Prompt& prompt,
                                                    std::span<const int32_t> history) const;
  // Ids that end a generation: the model's own unless ignored, and the request's.
  bool IsStop(int32_t id, const StopChoice& stop) const;

  const text::Tokenizer& tokenizer() const { return *tokenizer_; }
  const std::string& fingerprint() const { return facts_.fingerprint(); }
  const std::string& name() const { return facts_.name(); }
  int32_t block_tokens() const { return limits_.block_tokens; }
  const ModelLimits& limits() const { return limits_; }
  // How the model's file wants chats to be sampled, where it says so.
  const SamplingChoice& sampling_defaults() const { return sampling_defaults_; }
  // The same model, served otherwise. Shares the text side.
  std::shared_ptr<const ServedModel> WithLimits(ModelLimits limits) const;
  // As ListModels tells it, without the count of workers.
  v1::Model Describe() const;

 private:
  ServedModel() = default;
  ServedModel(const ServedModel&) = default;

  v1::GetModelResponse facts_;  // without the vocabulary
  ModelLimits limits_;
  SamplingChoice sampling_defaults_;
  std::shared_ptr<const text::Tokenizer> tokenizer_;
  std::optional<text::ChatEncoder> chat_;
  std::string chat_format_;
  absl::Status no_chat_;  // why there is no encoder
};

}  // namespace kvist::services

#endif  // KVIST_SERVICES_FRONTEND_SERVED_MODEL_H_
