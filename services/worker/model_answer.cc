#include "services/worker/model_answer.h"

#include <algorithm>
#include <memory>

#include "common/base/status.h"
#include "common/gguf/gguf_file.h"
#include "worker/kv/layout.h"

namespace kvist::services {

v1::Vocabulary ToProto(const text::Vocabulary& vocabulary) {
  v1::Vocabulary message;
  message.set_algorithm(static_cast<uint32_t>(vocabulary.algorithm));
  message.set_pretokenizer(static_cast<uint32_t>(vocabulary.pretokenizer));
  for (const std::string& piece : vocabulary.pieces) message.add_pieces(piece);
  message.mutable_scores()->Add(vocabulary.scores.begin(), vocabulary.scores.end());
  std::string kinds;
  for (const text::TokenKind kind : vocabulary.kinds) kinds.push_back(static_cast<char>(kind));
  message.set_kinds(kinds);
  for (const std::string& merge : vocabulary.merges) message.add_merges(merge);
  if (vocabulary.bos_id.has_value()) message.set_bos_id(*vocabulary.bos_id);
  if (vocabulary.eos_id.has_value()) message.set_eos_id(*vocabulary.eos_id);
  if (vocabulary.unknown_id.has_value()) message.set_unknown_id(*vocabulary.unknown_id);
  message.mutable_stop_ids()->Add(vocabulary.stop_ids.begin(), vocabulary.stop_ids.end());
  message.set_add_bos(vocabulary.add_bos);
  message.set_add_eos(vocabulary.add_eos);
  message.set_add_space_prefix(vocabulary.add_space_prefix);
  message.set_chat_template(vocabulary.chat_template);
  return message;
}

absl::StatusOr<text::Vocabulary> VocabularyOfFile(const std::string& path) {
  KVIST_ASSIGN_OR_RETURN(const std::unique_ptr<const gguf::File> file, gguf::File::Open(path));
  return text::ReadVocabulary(*file);
}

v1::GetModelResponse DescribeModel(const worker::Backend& backend) {
  const worker::ModelFacts& model = backend.model();
  v1::GetModelResponse message;
  message.set_fingerprint(model.fingerprint);
  message.set_name(model.name);
  message.set_architecture(model.architecture);
  message.set_context_tokens(model.context_tokens);
  message.set_parameters(model.parameters);
  message.set_numerics_id(backend.numerics_id());
  const worker::SamplingDefaults& defaults = model.sampling_defaults;
  v1::SamplingParams& sampling = *message.mutable_sampling_defaults();
  if (defaults.temperature.has_value()) sampling.set_temperature(*defaults.temperature);
  if (defaults.top_k.has_value()) sampling.set_top_k(*defaults.top_k);
  if (defaults.top_p.has_value()) sampling.set_top_p(*defaults.top_p);
  if (defaults.min_p.has_value()) sampling.set_min_p(*defaults.min_p);
  for (const worker::PoolSpec& pool : backend.pools()) {
    message.set_block_tokens(pool.block_tokens);
    const std::string format(worker::KvFormatName(pool.format));
    const auto& known = message.kv_formats();
    if (std::find(known.begin(), known.end(), format) == known.end()) {
      message.add_kv_formats(format);
    }
  }
  return message;
}

}  // namespace kvist::services
