#include "services/runtime/cache_params.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvist::services {
namespace {

using ::testing::ElementsAre;

std::string Text(const CacheWish& wish) {
  const auto params = CacheParamsOf(wish);
  if (!params.ok()) return DetailsOf(params.status()).field;
  std::string text(AllocationName(params->allocation()));
  if (params->has_attention()) {
    absl::StrAppend(&text, " ", cache_manager::AttentionText(SpanFromProto(params->attention())));
  }
  absl::StrAppend(&text, " ", params->kv_format());
  if (params->offload() != v1::CacheParams::OFFLOAD_UNSPECIFIED) {
    text.append(" ").append(OffloadName(params->offload()));
  }
  return text;
}

TEST(CacheParamsTest, PresetsStandForFields) {
  EXPECT_THAT(CachePresetNames(), ElementsAre("paged", "dynamic", "static", "sliding_window",
                                              "quantized", "offloaded", "none"));
  EXPECT_EQ(Text({}), " ");
  EXPECT_EQ(Text({.preset = "paged"}), "paged full ");
  EXPECT_EQ(Text({.preset = "dynamic"}), "paged full ");
  EXPECT_EQ(Text({.preset = "static"}), "static full ");
  EXPECT_EQ(Text({.preset = "sliding_window"}), "paged window=1024,sinks=4 ");
  EXPECT_EQ(Text({.preset = "quantized"}), "paged full q8");
  EXPECT_EQ(Text({.preset = "offloaded"}), "paged full  disk");
  EXPECT_EQ(Text({.preset = "none"}), "none full  off");
  EXPECT_EQ(Text({.preset = "elastic"}), "cache");
}

TEST(CacheParamsTest, APresetsWindowIsNoWiderThanTheContext) {
  const auto span = [](const CacheWish& wish, int64_t context_tokens) {
    const v1::CacheParams params = CacheParamsOf(wish, context_tokens).value();
    EXPECT_EQ(ValidateCacheParams(params, context_tokens).ok(), !wish.window_tokens.has_value());
    return cache_manager::AttentionText(SpanFromProto(params.attention()));
  };
  EXPECT_EQ(span({.preset = "sliding_window"}, 1024), "window=1024,sinks=4");
  EXPECT_EQ(span({.preset = "sliding_window"}, 1023), "window=1023,sinks=4");
  EXPECT_EQ(span({.preset = "paged"}, 512), "full");
  EXPECT_EQ(span({.preset = "sliding_window", .window_tokens = 1024}, 512), "window=1024,sinks=4");
}

TEST(CacheParamsTest, FlagsRefineAPreset) {
  EXPECT_EQ(Text({.preset = "sliding_window", .window_tokens = 64}), "paged window=64,sinks=4 ");
  EXPECT_EQ(Text({.preset = "sliding_window", .sink_tokens = 0}), "paged window=1024,sinks=0 ");
  EXPECT_EQ(Text({.preset = "static", .window_tokens = 64, .kv_format = "f32"}),
            "static window=64,sinks=0 f32");
  EXPECT_EQ(Text({.preset = "quantized", .kv_format = "q4"}), "paged full q4");
  EXPECT_EQ(Text({.preset = "quantized", .offload = "disk"}), "paged full q8 disk");
  EXPECT_EQ(Text({.preset = "offloaded", .offload = "off"}), "paged full  off");
  EXPECT_EQ(Text({.offload = "host"}), "  host");
  EXPECT_EQ(Text({.offload = "tape"}), "cache.offload");
  EXPECT_EQ(Text({.window_tokens = 64, .sink_tokens = 2}), " window=64,sinks=2 ");
  EXPECT_EQ(Text({.window_tokens = 0}), " full ");
  const v1::CacheParams sinks = CacheParamsOf({.sink_tokens = 8}).value();
  EXPECT_FALSE(sinks.attention().has_window_tokens());
  EXPECT_EQ(sinks.attention().sink_tokens(), 8);
  const v1::CacheParams window = CacheParamsOf({.window_tokens = 64}).value();
  EXPECT_EQ(window.attention().window_tokens(), 64);
  EXPECT_FALSE(window.attention().has_sink_tokens());
  EXPECT_FALSE(CacheParamsOf({.kv_format = "q8"}).value().has_attention());
  EXPECT_EQ(Text({.preset = "sliding_window", .window_tokens = 0}),
            "cache.attention.window_tokens");
}

TEST(CacheParamsTest, ContradictionsAreRefusedByName) {
  v1::CacheParams params;
  EXPECT_TRUE(ValidateCacheParams(params, 100).ok());
  params.mutable_attention()->set_window_tokens(101);
  EXPECT_EQ(DetailsOf(ValidateCacheParams(params, 100)).field, "cache.attention.window_tokens");
  params.mutable_attention()->set_window_tokens(100);
  EXPECT_TRUE(ValidateCacheParams(params, 100).ok());
  params.set_allocation(static_cast<v1::CacheParams::Allocation>(4));
  EXPECT_EQ(DetailsOf(ValidateCacheParams(params, 100)).field, "cache.allocation");
}

TEST(CacheParamsTest, OffloadOfNothingIsRefusedByName) {
  v1::CacheParams params;
  params.set_offload(static_cast<v1::CacheParams::Offload>(4));
  EXPECT_EQ(DetailsOf(ValidateCacheParams(params, 100)).field, "cache.offload");
  for (const auto offload : {v1::CacheParams::OFF, v1::CacheParams::DISK, v1::CacheParams::HOST}) {
    EXPECT_EQ(OffloadFromName(OffloadName(offload)), offload);
    params.set_offload(offload);
    params.set_allocation(v1::CacheParams::STATIC);
    EXPECT_TRUE(ValidateCacheParams(params, 100).ok());
    params.set_allocation(v1::CacheParams::NONE);
    EXPECT_EQ(ValidateCacheParams(params, 100).ok(), offload == v1::CacheParams::OFF);
  }
}

TEST(CacheParamsTest, NamesOfAllocationsConvertBothWays) {
  for (const auto allocation : {v1::CacheParams::ALLOCATION_UNSPECIFIED, v1::CacheParams::PAGED,
                                v1::CacheParams::STATIC, v1::CacheParams::NONE}) {
    EXPECT_EQ(AllocationFromName(AllocationName(allocation)), allocation);
  }
  EXPECT_EQ(AllocationFromName("elastic"), v1::CacheParams::ALLOCATION_UNSPECIFIED);
}

}  // namespace
}  // namespace kvist::services
