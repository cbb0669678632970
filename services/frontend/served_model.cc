#include "services/frontend/served_model.h"

#include <algorithm>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "cache_manager/block_key.h"
#include "common/base/status.h"
#include "services/frontend/wire.h"
#include "services/runtime/cache_params.h"

namespace kvist::services {
namespace {

absl::StatusOr<text::Vocabulary> VocabularyFromWire(const v1::Vocabulary& wire) {
  if (wire.algorithm() > static_cast<uint32_t>(text::Algorithm::kSentencePieceBpe)) {
    return InvalidField("vocabulary.algorithm", "is unknown to this frontend");
  }
  if (wire.pretokenizer() > static_cast<uint32_t>(text::Pretokenizer::kQwen2)) {
    return InvalidField("vocabulary.pretokenizer", "is unknown to this frontend");
  }
  text::Vocabulary vocabulary;
  vocabulary.algorithm = static_cast<text::Algorithm>(wire.algorithm());
  vocabulary.pretokenizer = static_cast<text::Pretokenizer>(wire.pretokenizer());
  vocabulary.pieces.assign(wire.pieces().begin(), wire.pieces().end());
  vocabulary.scores.assign(wire.scores().begin(), wire.scores().end());
  for (const char kind : wire.kinds()) {
    if (kind < static_cast<char>(text::TokenKind::kNormal) ||
        kind > static_cast<char>(text::TokenKind::kByte)) {
      return InvalidField("vocabulary.kinds", "holds an unknown kind");
    }
    vocabulary.kinds.push_back(static_cast<text::TokenKind>(kind));
  }
  vocabulary.merges.assign(wire.merges().begin(), wire.merges().end());
  if (wire.has_bos_id()) vocabulary.bos_id = wire.bos_id();
  if (wire.has_eos_id()) vocabulary.eos_id = wire.eos_id();
  if (wire.has_unknown_id()) vocabulary.unknown_id = wire.unknown_id();
  vocabulary.stop_ids.assign(wire.stop_ids().begin(), wire.stop_ids().end());
  vocabulary.add_bos = wire.add_bos();
  vocabulary.add_eos = wire.add_eos();
  vocabulary.add_space_prefix = wire.add_space_prefix();
  vocabulary.chat_template = wire.chat_template();
  return vocabulary;
}

absl::StatusOr<text::ChatFormat> FormatOf(const v1::GetModelResponse& response) {
  if (!response.chat_format_override().empty()) {
    return text::ChatFormatFromName(response.chat_format_override());
  }
  return text::RecognizeChatTemplate(response.vocabulary().chat_template());
}

std::vector<text::ChatMessage> ToMessages(const ChatPrompt& chat) {
  std::vector<text::ChatMessage> messages;
  for (const ChatTurn& turn : chat.messages) {
    auto role = text::ChatMessage::Role::kUser;
    if (turn.role == v1::ChatMessage::SYSTEM) role = text::ChatMessage::Role::kSystem;
    if (turn.role == v1::ChatMessage::ASSISTANT) role = text::ChatMessage::Role::kAssistant;
    messages.push_back({.role = role, .content = turn.content});
  }
  return messages;
}

// The same problem, with the field that it is about.
absl::Status AboutChat(const absl::Status& status) {
  return InvalidField("prompt.chat", std::string(status.message()));
}

}  // namespace

absl::StatusOr<ModelLimits> LimitsFromWire(const v1::GetModelResponse& response, int64_t vocab) {
  if (response.context_tokens() < 2) return InvalidField("context_tokens", "must be at least 2");
  if (!cache_manager::IsBlockSize(response.block_tokens())) {
    return InvalidField("block_tokens", "must be 16, 32, 64 or 128");
  }
  ModelLimits limits{.vocab = vocab,
                     .context_tokens = response.context_tokens(),
                     .block_tokens = response.block_tokens(),
                     .kv_formats = {response.kv_formats().begin(), response.kv_formats().end()},
                     .offload_tiers = {}};
  for (const std::string& name : response.offload_tiers()) {
    const v1::CacheParams::Offload tier = OffloadFromName(name);
    if (tier != v1::CacheParams::OFFLOAD_UNSPECIFIED) limits.offload_tiers.push_back(tier);
  }
  return limits;
}

void Widen(const ModelLimits& other, ModelLimits& limits) {
  limits.context_tokens = std::max(limits.context_tokens, other.context_tokens);
  const auto add_missing = [](const auto& from, auto& to) {
    for (const auto& one : from) {
      if (std::find(to.begin(), to.end(), one) == to.end()) to.push_back(one);
    }
  };
  add_missing(other.kv_formats, limits.kv_formats);
  add_missing(other.offload_tiers, limits.offload_tiers);
}

absl::StatusOr<std::shared_ptr<const ServedModel>> ServedModel::Create(
    const v1::GetModelResponse& response) {
  KVIST_ASSIGN_OR_RETURN(text::Vocabulary vocabulary, VocabularyFromWire(response.vocabulary()));
  auto model = std::shared_ptr<ServedModel>(new ServedModel());
  KVIST_ASSIGN_OR_RETURN(model->tokenizer_, text::Tokenizer::Create(std::move(vocabulary)));
  const absl::StatusOr<text::ChatFormat> format = FormatOf(response);
  if (format.ok()) {
    auto encoder = text::ChatEncoder::Create(
        model->tokenizer_.get(), *format,
        text::ChatEncoder::DefaultSystem(response.vocabulary().chat_template()));
    if (encoder.ok()) {
      model->chat_ = *std::move(encoder);
      model->chat_format_ = std::string(text::ChatFormatName(*format));
    } else {
      model->no_chat_ = AboutChat(encoder.status());
    }
  } else {
    model->no_chat_ = AboutChat(format.status());
  }
  model->facts_ = response;
  model->facts_.clear_vocabulary();
  KVIST_ASSIGN_OR_RETURN(model->limits_, LimitsFromWire(response, model->tokenizer_->size()));
  model->sampling_defaults_ = FromWire(response.sampling_defaults());
  KVIST_RETURN_IF_ERROR(ValidateSamplingDefaults(model->sampling_defaults_, model->limits_.vocab));
  return model;
}

absl::StatusOr<std::vector<int32_t>> ServedModel::EncodePrompt(
    const Prompt& prompt, std::span<const int32_t> history) const {
  if (const auto* ids = std::get_if<IdsPrompt>(&prompt)) return ids->ids;
  if (const auto* raw = std::get_if<TextPrompt>(&prompt)) {
    std::vector<int32_t> ids = tokenizer_->Encode(raw->text, text::ControlTokens::kPlain);
    const text::Vocabulary& vocabulary = tokenizer_->vocabulary();
    if (history.empty() && vocabulary.add_bos && vocabulary.bos_id.has_value()) {
      ids.insert(ids.begin(), *vocabulary.bos_id);
    }
    return ids;
  }
  const auto* chat = std::get_if<ChatPrompt>(&prompt);
  if (chat == nullptr) return FieldOutOfRange("prompt", "there is none");
  if (!chat_.has_value()) return no_chat_;
  const std::vector<text::ChatMessage> messages = ToMessages(*chat);
  auto ids = history.empty() ? chat_->EncodeConversation(messages)
                             : chat_->EncodeContinuation(history, messages);
  if (!ids.ok()) return AboutChat(ids.status());
  return ids;
}

bool ServedModel::IsStop(int32_t id, const StopChoice& stop) const {
  if (!stop.ignore_model_stops && tokenizer_->IsStop(id)) return true;
  return std::find(stop.stop_ids.begin(), stop.stop_ids.end(), id) != stop.stop_ids.end();
}

std::shared_ptr<const ServedModel> ServedModel::WithLimits(ModelLimits limits) const {
  auto model = std::shared_ptr<ServedModel>(new ServedModel(*this));
  model->limits_ = std::move(limits);
  return model;
}

v1::Model ServedModel::Describe() const {
  v1::Model model;
  model.set_name(facts_.name());
  model.set_fingerprint(facts_.fingerprint());
  model.set_architecture(facts_.architecture());
  model.set_context_tokens(limits_.context_tokens);
  model.set_parameters(facts_.parameters());
  model.set_chat_format(chat_format_);
  for (const std::string& format : limits_.kv_formats) model.add_kv_formats(format);
  for (const v1::CacheParams::Offload tier : limits_.offload_tiers) {
    model.add_offload_tiers(std::string(OffloadName(tier)));
  }
  model.set_block_tokens(limits_.block_tokens);
  return model;
}

}  // namespace kvist::services
