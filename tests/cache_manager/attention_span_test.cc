#include "cache_manager/attention_span.h"

#include <string>

#include "common/base/status.h"
#include "gtest/gtest.h"

namespace kvist::cache_manager {
namespace {

constexpr int64_t kContext = 1000;

TEST(AttentionSpanTest, ContradictionsAreRefusedByName) {
  struct Case {
    AttentionSpan span;
    std::string field;  // empty: fine
  };
  const std::string window = "cache.attention.window_tokens";
  const std::string sinks = "cache.attention.sink_tokens";
  for (const Case& c : std::initializer_list<Case>{{{0, 0}, ""},
                                                   {{16, 0}, ""},
                                                   {{1000, 999}, ""},
                                                   {{15, 0}, window},
                                                   {{1, 0}, window},
                                                   {{-16, 0}, window},
                                                   {{1001, 0}, window},
                                                   {{0, 1}, sinks},
                                                   {{16, 16}, sinks},
                                                   {{16, 15}, ""},
                                                   {{16, -1}, sinks},
                                                   {{16, INT64_MAX}, sinks}}) {
    const absl::Status status = ValidateAttention(c.span, kContext);
    EXPECT_EQ(status.ok(), c.field.empty()) << AttentionText(c.span) << ": " << status;
    if (status.ok()) continue;
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(DetailsOf(status).field, c.field);
  }
}

TEST(AttentionSpanTest, WhereTheModelHasAWindowTheNarrowerHoldsWithoutSinks) {
  EXPECT_EQ(SpanInLayers(0, {}), AttentionSpan());
  EXPECT_EQ(SpanInLayers(0, {64, 4}), (AttentionSpan{64, 4}));
  EXPECT_EQ(SpanInLayers(512, {}), (AttentionSpan{512, 0}));
  EXPECT_EQ(SpanInLayers(512, {64, 4}), (AttentionSpan{64, 0}));
  EXPECT_EQ(SpanInLayers(512, {1024, 4}), (AttentionSpan{512, 0}));
}

TEST(AttentionSpanTest, DifferentSpansHaveDifferentTexts) {
  EXPECT_EQ(AttentionText({}), "full");
  EXPECT_EQ(AttentionText({512, 4}), "window=512,sinks=4");
  EXPECT_NE(AttentionText({512, 0}), AttentionText({512, 4}));
}

}  // namespace
}  // namespace kvist::cache_manager
