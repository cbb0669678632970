#include "services/frontend/served_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "cache_manager/block_key.h"
#include "common/base/status.h"
#include "services/worker/model_answer.h"
#include "tests/services/frontend/letter_vocabulary.h"

namespace kvist::services {
namespace {

v1::GetModelResponse Answer() {
  v1::GetModelResponse answer;
  answer.set_fingerprint("letters");
  answer.set_name("letters");
  answer.set_context_tokens(512);
  answer.set_block_tokens(16);
  answer.add_kv_formats("f16");
  *answer.mutable_vocabulary() = ToProto(LetterVocabulary());
  return answer;
}

TEST(ServedModelTest, KeepsTheDefaultsThatTheFileHas) {
  v1::GetModelResponse response = Answer();
  EXPECT_FALSE(ServedModel::Create(response).value()->sampling_defaults().temperature.has_value());
  response.mutable_sampling_defaults()->set_temperature(0.5f);
  response.mutable_sampling_defaults()->set_top_k(kLetterVocabularySize);
  const auto model = ServedModel::Create(response);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ((*model)->sampling_defaults().temperature, 0.5f);
  EXPECT_EQ((*model)->sampling_defaults().top_k, kLetterVocabularySize);
  EXPECT_FALSE((*model)->sampling_defaults().top_p.has_value());
}

TEST(ServedModelTest, WhatOneOfTheWorkersServesIsServed) {
  v1::GetModelResponse other = Answer();
  other.clear_kv_formats();
  other.add_kv_formats("q8");
  other.add_offload_tiers("disk");
  other.add_offload_tiers("a tier of a later version");
  other.set_context_tokens(other.context_tokens() + 100);
  const auto model = ServedModel::Create(Answer()).value();
  ModelLimits limits = model->limits();
  Widen(LimitsFromWire(other, limits.vocab).value(), limits);
  const v1::Model described = model->WithLimits(limits)->Describe();
  EXPECT_THAT(described.kv_formats(), testing::ElementsAre("f16", "q8"));
  EXPECT_THAT(described.offload_tiers(), testing::ElementsAre("disk"));
  EXPECT_EQ(described.context_tokens(), other.context_tokens());
  EXPECT_EQ(model->Describe().offload_tiers_size(), 0);
}

TEST(ServedModelTest, DescribesWhatCachesItsWorkerHas) {
  v1::GetModelResponse response = Answer();
  response.add_kv_formats("q8");
  response.add_offload_tiers("disk");
  const v1::Model model = ServedModel::Create(response).value()->Describe();
  EXPECT_THAT(model.kv_formats(), testing::ElementsAre("f16", "q8"));
  EXPECT_THAT(model.offload_tiers(), testing::ElementsAre("disk"));
  EXPECT_EQ(model.block_tokens(), 16);
}

TEST(ServedModelTest, RefusesDefaultsThatNoRequestMayHave) {
  v1::GetModelResponse hot = Answer(), wide = Answer(), none = Answer(), odd = Answer();
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

TEST(ServedModelTest, EveryBlockSizeThatThereIsIsTakenAndItsKeysAreComputed) {
  for (const int32_t size : {16, 32, 64, 128}) {
    v1::GetModelResponse answer = Answer();
    answer.set_block_tokens(size);
    const auto model = ServedModel::Create(answer);
    ASSERT_TRUE(model.ok()) << model.status();
    const std::vector<int32_t> ids(300, 1);
    const cache_manager::BlockKey root =
        cache_manager::RootKey({.block_tokens = (*model)->block_tokens()});
    EXPECT_EQ(cache_manager::KeysOf(root, ids, (*model)->block_tokens()).size(),
              static_cast<size_t>(300 / size));
  }
}

TEST(ServedModelTest, OtherBlockSizesAreRefusedByName) {
  for (const int32_t size :
       {std::numeric_limits<int32_t>::min(), -16, 0, 1, 8, 15, 17, 24, 127, 129, 256, 1 << 30}) {
    v1::GetModelResponse answer = Answer();
    answer.set_block_tokens(size);
    const auto model = ServedModel::Create(answer);
    EXPECT_EQ(model.status().code(), absl::StatusCode::kInvalidArgument) << size;
    EXPECT_EQ(DetailsOf(model.status()).field, "block_tokens") << size;
  }
}

struct BadAnswer {
  const char* what;
  std::function<void(v1::GetModelResponse&)> spoil;
};

TEST(ServedModelTest, AnswersThatNoWorkerGivesAreRefused) {
  const std::vector<BadAnswer> table = {
      {"no context", [](auto& a) { a.set_context_tokens(1); }},
      {"no vocabulary", [](auto& a) { a.clear_vocabulary(); }},
      {"algorithm", [](auto& a) { a.mutable_vocabulary()->set_algorithm(7); }},
      {"pretokenizer", [](auto& a) { a.mutable_vocabulary()->set_pretokenizer(77); }},
      {"kinds missing", [](auto& a) { a.mutable_vocabulary()->mutable_kinds()->pop_back(); }},
      {"kind unknown",
       [](auto& a) { (*a.mutable_vocabulary()->mutable_kinds())[0] = static_cast<char>(200); }},
      {"stop id = vocabulary",
       [](auto& a) { a.mutable_vocabulary()->add_stop_ids(kLetterVocabularySize); }},
      {"eos below 0", [](auto& a) { a.mutable_vocabulary()->set_eos_id(-1); }},
      {"bos = vocabulary",
       [](auto& a) { a.mutable_vocabulary()->set_bos_id(kLetterVocabularySize); }},
      {"merge of nothing", [](auto& a) { a.mutable_vocabulary()->add_merges("a"); }},
  };
  for (const BadAnswer& bad : table) {
    v1::GetModelResponse answer = Answer();
    bad.spoil(answer);
    EXPECT_FALSE(ServedModel::Create(answer).ok()) << bad.what;
  }
}

}  // namespace
}  // namespace kvist::services
