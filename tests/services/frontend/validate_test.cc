#include "services/frontend/validate.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "common/base/status.h"
#include "services/frontend/limits.h"
#include "services/runtime/id_syntax.h"

namespace kvist::services {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

InferenceRequest Good() {
  InferenceRequest request;
  request.prompt = TextPrompt{"hello"};
  return request;
}

// A change of a good request, and the field that is wrong then ("": none is).
struct Row {
  std::function<void(InferenceRequest&)> change;
  std::string field;
  absl::StatusCode code = absl::StatusCode::kInvalidArgument;
};

void ExpectRow(const absl::Status& status, const Row& row, size_t number) {
  if (row.field.empty()) {
    EXPECT_TRUE(status.ok()) << "row " << number << ": " << status;
    return;
  }
  EXPECT_EQ(status.code(), row.code) << "row " << number << ": " << status;
  EXPECT_EQ(DetailsOf(status).field, row.field) << "row " << number;
}

template <typename Member>
std::function<void(InferenceRequest&)> Sampling(
    Member member,
    typename std::remove_reference_t<decltype(std::declval<SamplingChoice>().*member)>::value_type
        value) {
  return [=](InferenceRequest& request) { request.sampling.*member = value; };
}

ChatPrompt ChatOf(size_t messages, size_t bytes) {
  ChatPrompt chat;
  for (size_t i = 0; i < messages; ++i) chat.messages.push_back({.role = 2, .content = "x"});
  if (bytes > 0) chat.messages.back().content.assign(bytes, 'x');
  return chat;
}

TEST(ValidateTest, SamplingAtTheLimitAndOneOver) {
  using S = SamplingChoice;
  const float above_1 = std::nextafter(1.0f, 2.0f);
  const float above_2 = std::nextafter(2.0f, 3.0f);
  const float tiny = std::numeric_limits<float>::denorm_min();
  const std::vector<Row> rows = {
      {Sampling(&S::temperature, 0.0f), ""},
      {Sampling(&S::temperature, 100.0f), ""},
      {Sampling(&S::temperature, std::nextafter(100.0f, 200.0f)), "sampling.temperature"},
      {Sampling(&S::temperature, -tiny), "sampling.temperature"},
      {Sampling(&S::temperature, kNan), "sampling.temperature"},
      {Sampling(&S::temperature, kInfinity), "sampling.temperature"},
      {Sampling(&S::top_p, 1.0f), ""},
      {Sampling(&S::top_p, tiny), ""},
      {Sampling(&S::top_p, 0.0f), "sampling.top_p"},
      {Sampling(&S::top_p, above_1), "sampling.top_p"},
      {Sampling(&S::top_p, kNan), "sampling.top_p"},
      {Sampling(&S::min_p, 0.0f), ""},
      {Sampling(&S::min_p, 1.0f), ""},
      {Sampling(&S::min_p, above_1), "sampling.min_p"},
      {Sampling(&S::min_p, -tiny), "sampling.min_p"},
      {Sampling(&S::min_p, kNan), "sampling.min_p"},
      {Sampling(&S::repetition_penalty, tiny), ""},
      {Sampling(&S::repetition_penalty, 100.0f), ""},
      {Sampling(&S::repetition_penalty, 0.0f), "sampling.repetition_penalty"},
      {Sampling(&S::repetition_penalty, 100.1f), "sampling.repetition_penalty"},
      {Sampling(&S::repetition_penalty, kNan), "sampling.repetition_penalty"},
      {Sampling(&S::presence_penalty, -2.0f), ""},
      {Sampling(&S::presence_penalty, 2.0f), ""},
      {Sampling(&S::presence_penalty, above_2), "sampling.presence_penalty"},
      {Sampling(&S::presence_penalty, -above_2), "sampling.presence_penalty"},
      {Sampling(&S::presence_penalty, kNan), "sampling.presence_penalty"},
      {Sampling(&S::frequency_penalty, -2.0f), ""},
      {Sampling(&S::frequency_penalty, 2.0f), ""},
      {Sampling(&S::frequency_penalty, above_2), "sampling.frequency_penalty"},
      {Sampling(&S::frequency_penalty, -above_2), "sampling.frequency_penalty"},
      {Sampling(&S::frequency_penalty, -kInfinity), "sampling.frequency_penalty"},
      {Sampling(&S::top_k, 0), ""},
      {Sampling(&S::top_k, -1), "sampling.top_k"},
      {Sampling(&S::logprobs, 0), ""},
      {Sampling(&S::logprobs, 20), ""},
      {Sampling(&S::logprobs, 21), "sampling.logprobs"},
      {Sampling(&S::logprobs, -1), "sampling.logprobs"},
      {Sampling(&S::seed, std::numeric_limits<uint64_t>::max()), ""},
  };
  for (size_t i = 0; i < rows.size(); ++i) {
    InferenceRequest request = Good();
    rows[i].change(request);
    ExpectRow(ValidateRequest(request), rows[i], i);
  }
}

TEST(ValidateTest, StopAndOtherFieldsAtTheLimitAndOneOver) {
  using R = InferenceRequest;
  const std::vector<Row> rows = {
      {[](R& r) { r.stop.max_new_tokens = 1; }, ""},
      {[](R& r) { r.stop.max_new_tokens = 0; }, "stop.max_new_tokens"},
      {[](R& r) { r.stop.max_new_tokens = -1; }, "stop.max_new_tokens"},
      {[](R& r) { r.stop.max_new_tokens = std::numeric_limits<int64_t>::max(); }, ""},
      {[](R& r) { r.stop.max_new_tokens = 5, r.stop.min_new_tokens = 5; }, ""},
      {[](R& r) { r.stop.max_new_tokens = 5, r.stop.min_new_tokens = 6; }, "stop.min_new_tokens"},
      {[](R& r) { r.stop.min_new_tokens = -1; }, "stop.min_new_tokens"},
      {[](R& r) { r.stop.min_new_tokens = kDefaultMaxNewTokens + 1; }, "stop.min_new_tokens"},
      {[](R& r) { r.stop.stop_ids.assign(64, 1); }, ""},
      {[](R& r) { r.stop.stop_ids.assign(65, 1); }, "stop.stop_ids"},
      {[](R& r) { r.stop.stop_strings.assign(16, "x"); }, ""},
      {[](R& r) { r.stop.stop_strings.assign(17, "x"); }, "stop.stop_strings"},
      {[](R& r) { r.stop.stop_strings = {std::string(256, 'x')}; }, ""},
      {[](R& r) { r.stop.stop_strings = {std::string(257, 'x')}; }, "stop.stop_strings"},
      {[](R& r) { r.stop.stop_strings = {""}; }, "stop.stop_strings"},
      {[](R& r) { r.stop.stop_strings = {"\xC3"}; }, "stop.stop_strings"},
      {[](R& r) { r.priority = 100; }, ""},
      {[](R& r) { r.priority = 101; }, "priority"},
      {[](R& r) { r.priority = -100; }, ""},
      {[](R& r) { r.priority = -101; }, "priority"},
      {[](R& r) { r.samples = 0; }, "samples"},
      {[](R& r) { r.samples = kMaxSamples; }, ""},
      {[](R& r) { r.samples = kMaxSamples + 1; }, "samples"},
      {[](R& r) { r.session = SessionId("s"), r.samples = 1; }, ""},
      {[](R& r) { r.session = SessionId("s"), r.samples = 2; }, "samples"},
      {[](R& r) { r.id = RequestId(std::string(61, 'a')), r.samples = 2; }, ""},
      {[](R& r) { r.id = RequestId(std::string(62, 'a')), r.samples = 2; }, "request_id"},
      {[](R& r) { r.sampling.sample_index = kMaxSampleIndex; }, ""},
      {[](R& r) { r.sampling.sample_index = kMaxSampleIndex + 1; }, "sampling.sample_index"},
      {[](R& r) { r.sampling.sample_index = -1; }, "sampling.sample_index"},
      {[](R& r) { r.cache.allocation = 3; }, ""},
      {[](R& r) { r.cache.allocation = 4; }, "cache.allocation"},
      {[](R& r) { r.cache.allocation = -1; }, "cache.allocation"},
      {[](R& r) { r.cache.window_tokens = 16, r.cache.sink_tokens = 15; }, ""},
      {[](R& r) { r.cache.window_tokens = 15, r.cache.sink_tokens = 0; },
       "cache.attention.window_tokens"},
      {[](R& r) { r.cache.window_tokens = 0, r.cache.sink_tokens = 4; },
       "cache.attention.sink_tokens"},
      {[](R& r) { r.cache.window_tokens = 16, r.cache.sink_tokens = 16; },
       "cache.attention.sink_tokens"},
      {[](R& r) { r.cache.sink_tokens = 8; }, "cache.attention.sink_tokens"},
      {[](R& r) { r.session = SessionId("s"), r.cache.sink_tokens = 8; }, ""},
      {[](R& r) { r.session = SessionId("s"), r.cache.sink_tokens = -1; },
       "cache.attention.sink_tokens"},
      {[](R& r) { r.session = SessionId("s"), r.cache.sink_tokens = 1 << 20; },
       "cache.attention.sink_tokens"},
      {[](R& r) { r.session = SessionId("s"), r.cache.window_tokens = 0, r.cache.sink_tokens = 1; },
       "cache.attention.sink_tokens"},
      {[](R& r) { r.id = RequestId(std::string(64, 'a')); }, ""},
      {[](R& r) { r.id = RequestId(std::string(65, 'a')); }, "request_id"},
      {[](R& r) { r.id = RequestId("a b"); }, "request_id"},
      {[](R& r) { r.session = SessionId("A.z_0-9"); }, ""},
      {[](R& r) { r.session = SessionId(std::string(65, 'a')); }, "session_id"},
      {[](R& r) { r.session = SessionId("a/b"); }, "session_id"},
      {[](R& r) { r.session = SessionId(std::string("a\0b", 3)); }, "session_id"},
      {[](R& r) { r.model.assign(256, 'm'); }, ""},
      {[](R& r) { r.model.assign(257, 'm'); }, "model"},
      {[](R& r) { r.model = "\xFF"; }, "model"},
  };
  for (size_t i = 0; i < rows.size(); ++i) {
    InferenceRequest request = Good();
    rows[i].change(request);
    ExpectRow(ValidateRequest(request), rows[i], i);
  }
}

TEST(ValidateTest, PromptsAtTheLimitAndOneOver) {
  using R = InferenceRequest;
  constexpr auto kRange = absl::StatusCode::kOutOfRange;
  const std::vector<Row> rows = {
      {[](R& r) { r.prompt = std::monostate(); }, "prompt", kRange},
      {[](R& r) { r.prompt = TextPrompt{""}; }, "prompt.text", kRange},
      {[](R& r) { r.prompt = TextPrompt{std::string(kMaxTextBytes, 'x')}; }, ""},
      {[](R& r) { r.prompt = TextPrompt{std::string(kMaxTextBytes + 1, 'x')}; }, "prompt.text",
       kRange},
      {[](R& r) { r.prompt = TextPrompt{"a\x80"}; }, "prompt.text"},
      {[](R& r) { r.prompt = TextPrompt{"\xED\xA0\x80"}; }, "prompt.text"},  // a surrogate
      {[](R& r) { r.prompt = TextPrompt{std::string("\0", 1)}; }, ""},
      {[](R& r) { r.prompt = IdsPrompt{}; }, "prompt.ids", kRange},
      {[](R& r) { r.prompt = IdsPrompt{std::vector<int32_t>(kMaxPromptIds)}; }, ""},
      {[](R& r) { r.prompt = IdsPrompt{std::vector<int32_t>(kMaxPromptIds + 1)}; }, "prompt.ids",
       kRange},
      {[](R& r) { r.prompt = ChatPrompt{}; }, "prompt.chat", kRange},
      {[](R& r) { r.prompt = ChatOf(1024, 0); }, ""},
      {[](R& r) { r.prompt = ChatOf(1025, 0); }, "prompt.chat", kRange},
      {[](R& r) { r.prompt = ChatOf(2, kMaxTextBytes - 1); }, ""},
      {[](R& r) { r.prompt = ChatOf(2, kMaxTextBytes); }, "prompt.chat", kRange},
      {[](R& r) { r.prompt = ChatPrompt{{{.role = 0, .content = "x"}}}; }, "prompt.chat.role"},
      {[](R& r) { r.prompt = ChatPrompt{{{.role = 4, .content = "x"}}}; }, "prompt.chat.role"},
      {[](R& r) { r.prompt = ChatPrompt{{{.role = 2, .content = "\xFF"}}}; },
       "prompt.chat.content"},
  };
  for (size_t i = 0; i < rows.size(); ++i) {
    InferenceRequest request = Good();
    rows[i].change(request);
    ExpectRow(ValidateRequest(request), rows[i], i);
  }
}

TEST(ValidateTest, WhatTheModelLimits) {
  const ModelLimits model{.vocab = 100,
                          .context_tokens = 50,
                          .kv_formats = {"f16", "f32"},
                          .offload_tiers = {v1::CacheParams::DISK}};
  using R = InferenceRequest;
  const std::vector<Row> rows = {
      {[](R& r) {
         r.prompt = IdsPrompt{{0, 99}};
       },
       ""},
      {[](R& r) { r.prompt = IdsPrompt{{100}}; }, "prompt.ids"},
      {[](R& r) { r.prompt = IdsPrompt{{-1}}; }, "prompt.ids"},
      {[](R& r) { r.stop.stop_ids = {99}; }, ""},
      {[](R& r) { r.stop.stop_ids = {100}; }, "stop.stop_ids"},
      {[](R& r) { r.sampling.top_k = 100; }, ""},
      {[](R& r) { r.sampling.top_k = 101; }, "sampling.top_k"},
      {[](R& r) { r.cache.kv_format = "f32"; }, ""},
      {[](R& r) { r.cache.kv_format = "q8"; }, "cache.kv_format"},
      {[](R& r) { r.cache.offload = v1::CacheParams::OFF; }, ""},
      {[](R& r) { r.cache.offload = v1::CacheParams::DISK; }, ""},
      {[](R& r) { r.cache.offload = v1::CacheParams::HOST; }, "cache.offload"},
  };
  for (size_t i = 0; i < rows.size(); ++i) {
    InferenceRequest request = Good();
    rows[i].change(request);
    ExpectRow(ValidateForModel(request, model), rows[i], i);
  }
  EXPECT_TRUE(ValidatePromptLength(49, model).ok());
  EXPECT_EQ(ValidatePromptLength(50, model).code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(DetailsOf(ValidatePromptLength(50, model)).field, "prompt");
  EXPECT_EQ(ValidatePromptLength(0, model).code(), absl::StatusCode::kOutOfRange);
}

TEST(ValidateTest, SessionsAtTheLimitAndOneOver) {
  EXPECT_TRUE(ValidateNewSessionId("id", std::string(kMaxIdBytes, 'a')).ok());
  EXPECT_FALSE(ValidateNewSessionId("id", std::string(kMaxIdBytes + 1, 'a')).ok());
  EXPECT_FALSE(ValidateNewSessionId("id", "").ok());
  EXPECT_FALSE(ValidateNewSessionId("id", "implicit-mine").ok());
  EXPECT_TRUE(ValidateSessionTtl(std::nullopt).ok());
  EXPECT_TRUE(ValidateSessionTtl(1).ok());
  EXPECT_FALSE(ValidateSessionTtl(0).ok());
  EXPECT_TRUE(ValidateSessionTtl(kMaxSessionTtlSeconds).ok());
  EXPECT_FALSE(ValidateSessionTtl(kMaxSessionTtlSeconds + 1).ok());
}

}  // namespace
}  // namespace kvist::services
