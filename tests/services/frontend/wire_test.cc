#include "services/frontend/wire.h"

#include <gtest/gtest.h>

#include <string>

#include "services/runtime/cache_params.h"

namespace kvist::services {
namespace {

InferenceRequest Chat() {
  InferenceRequest request;
  request.prompt = ChatPrompt{{{.role = 2, .content = "hello"}}};
  return request;
}

TEST(ResolveSamplingTest, ACompletionIsGreedyWhateverTheModelsFileSays) {
  InferenceRequest request;
  request.prompt = TextPrompt{"hello"};
  const v1::SamplingParams wire =
      ResolveSampling(request, {.temperature = 0.6f, .top_k = 20, .top_p = 0.5f}, 3);
  EXPECT_EQ(wire.temperature(), 0.0f);
  EXPECT_EQ(wire.top_k(), 0);
  EXPECT_EQ(wire.top_p(), 1.0f);
  EXPECT_EQ(wire.min_p(), 0.0f);
  EXPECT_EQ(wire.seed(), 3u);
  EXPECT_FALSE(wire.has_logprobs());
}

TEST(ResolveSamplingTest, AChatTakesWhatTheFileSaysAndItsOwnDefaultsForTheRest) {
  const v1::SamplingParams none = ResolveSampling(Chat(), {}, 3);
  EXPECT_EQ(none.temperature(), 0.7f);
  EXPECT_EQ(none.top_k(), 0);
  EXPECT_EQ(none.top_p(), 0.9f);
  EXPECT_EQ(none.min_p(), 0.0f);
  const v1::SamplingParams some = ResolveSampling(Chat(), {.temperature = 0.0f, .top_k = 20}, 3);
  EXPECT_EQ(some.temperature(), 0.0f);
  EXPECT_EQ(some.top_k(), 20);
  EXPECT_EQ(some.top_p(), 0.9f);
  const v1::SamplingParams others = ResolveSampling(Chat(), {.top_p = 0.5f, .min_p = 0.1f}, 3);
  EXPECT_EQ(others.temperature(), 0.7f);
  EXPECT_EQ(others.top_p(), 0.5f);
  EXPECT_EQ(others.min_p(), 0.1f);
}

TEST(ResolveSamplingTest, TheRequestHasTheLastWord) {
  InferenceRequest request = Chat();
  request.sampling = {.temperature = 1.5f, .top_k = 0, .top_p = 1.0f, .min_p = 0.0f};
  const v1::SamplingParams wire =
      ResolveSampling(request, {.temperature = 0.6f, .top_k = 20, .top_p = 0.5f, .min_p = 0.1f}, 3);
  EXPECT_EQ(wire.temperature(), 1.5f);
  EXPECT_EQ(wire.top_k(), 0);
  EXPECT_EQ(wire.top_p(), 1.0f);
  EXPECT_EQ(wire.min_p(), 0.0f);
}

// What a request of `attention` (nullptr: none) sees over a session of window 1024 and 4 sinks.
std::string OverASession(const v1::AttentionParams* attention) {
  v1::CacheParams session;
  session.mutable_attention()->set_window_tokens(1024);
  session.mutable_attention()->set_sink_tokens(4);
  v1::GenerateRequest request;
  if (attention != nullptr) *request.mutable_cache()->mutable_attention() = *attention;
  const v1::CacheParams wire = ResolveCache(FromWire(request, {}).cache, session);
  return cache_manager::AttentionText(SpanFromProto(wire.attention()));
}

TEST(ResolveCacheTest, EachFieldOfTheAttentionIsTheRequestsOrElseTheSessions) {
  v1::AttentionParams window, sinks, no_sinks, both, full;
  window.set_window_tokens(512);
  sinks.set_sink_tokens(8);
  no_sinks.set_sink_tokens(0);
  both.set_window_tokens(512);
  both.set_sink_tokens(0);
  full.set_window_tokens(0);
  EXPECT_EQ(OverASession(nullptr), "window=1024,sinks=4");
  EXPECT_EQ(OverASession(&window), "window=512,sinks=4");
  EXPECT_EQ(OverASession(&sinks), "window=1024,sinks=8");
  EXPECT_EQ(OverASession(&no_sinks), "window=1024,sinks=0");
  EXPECT_EQ(OverASession(&both), "window=512,sinks=0");
  EXPECT_EQ(OverASession(&full), "full");
}

TEST(ResolveCacheTest, AnAttentionThatSaysNothingIsFull) {
  const v1::AttentionParams nothing;
  EXPECT_EQ(OverASession(&nothing), "full");
}

}  // namespace
}  // namespace kvist::services
