#include "services/frontend/served_model.h"

#include <gtest/gtest.h>

#include <limits>

#include "common/base/status.h"
#include "services/worker/model_answer.h"
#include "tests/services/frontend/letter_vocabulary.h"

namespace kvist::services {
namespace {

v1::GetModelResponse Letters() {
  v1::GetModelResponse response;
  response.set_fingerprint("letters");
  response.set_context_tokens(512);
  response.set_block_tokens(16);
  response.add_kv_formats("f16");
  *response.mutable_vocabulary() = ToProto(LetterVocabulary());
  return response;
}

TEST(ServedModelTest, KeepsTheDefaultsThatTheFileHas) {
  v1::GetModelResponse response = Letters();
  EXPECT_FALSE(ServedModel::Create(response).value()->sampling_defaults().temperature.has_value());
  response.mutable_sampling_defaults()->set_temperature(0.5f);
  response.mutable_sampling_defaults()->set_top_k(kLetterVocabularySize);
  const auto model = ServedModel::Create(response);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ((*model)->sampling_defaults().temperature, 0.5f);
  EXPECT_EQ((*model)->sampling_defaults().top_k, kLetterVocabularySize);
  EXPECT_FALSE((*model)->sampling_defaults().top_p.has_value());
}

TEST(ServedModelTest, RefusesDefaultsThatNoRequestMayHave) {
  v1::GetModelResponse hot = Letters(), wide = Letters(), none = Letters(), odd = Letters();
  hot.mutable_sampling_defaults()->set_temperature(100.1f);
  wide.mutable_sampling_defaults()->set_top_k(kLetterVocabularySize + 1);
  none.mutable_sampling_defaults()->set_top_p(0.0f);
  odd.mutable_sampling_defaults()->set_min_p(std::numeric_limits<float>::quiet_NaN());
  for (const auto& [response, field] :
       {std::pair(hot, "sampling.temperature"), std::pair(wide, "sampling.top_k"),
        std::pair(none, "sampling.top_p"), std::pair(odd, "sampling.min_p")}) {
    const absl::Status status = ServedModel::Create(response).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << field;
    EXPECT_EQ(DetailsOf(status).field, field);
  }
}

}  // namespace
}  // namespace kvist::services
