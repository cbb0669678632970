// What GetModel answers: facts of the backend and the model file's vocabulary.
#ifndef KVIST_SERVICES_WORKER_MODEL_ANSWER_H_
#define KVIST_SERVICES_WORKER_MODEL_ANSWER_H_

#include <string>

#include "absl/status/statusor.h"
#include "common/text/tokenizer.h"
#include "proto/kvist/v1/worker.pb.h"
#include "worker/backend/backend.h"

namespace kvist::services {

v1::Vocabulary ToProto(const text::Vocabulary& vocabulary);
// The vocabulary of a GGUF file. Errors as gguf::File::Open and text::ReadVocabulary.
absl::StatusOr<text::Vocabulary> VocabularyOfFile(const std::string& path);
// All but vocabulary, worker id, incarnation and offload tiers.
v1::GetModelResponse DescribeModel(const worker::Backend& backend);

}  // namespace kvist::services

#endif  // KVIST_SERVICES_WORKER_MODEL_ANSWER_H_
