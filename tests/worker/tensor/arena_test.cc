#include "worker/tensor/arena.h"

#include <cstdint>
#include <set>
#include <string>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvist::worker {
namespace {

TEST(ArenaTest, IsZeroedWritableAndAlignedToTheLastByte) {
  for (const int64_t bytes : {1, 4096, (2 << 20) - 1, 2 << 20, (2 << 20) + 1}) {
    auto arena = Arena::Create(bytes, "test");
    ASSERT_TRUE(arena.ok()) << arena.status();
    EXPECT_EQ(arena->size_bytes(), bytes);
    const uintptr_t alignment = bytes >= 2 << 20 ? 2 << 20 : 64;
    EXPECT_EQ(reinterpret_cast<uintptr_t>(arena->data()) % alignment, 0u);
    for (const int64_t i : std::set<int64_t>{0, bytes / 2, bytes - 1}) {
      EXPECT_EQ(arena->data()[i], std::byte{0});
      arena->data()[i] = std::byte{1};
    }
  }
}

TEST(ArenaTest, MovesItsMemory) {
  Arena first = *Arena::Create(100, "test");
  std::byte* const data = first.data();
  Arena second = std::move(first);
  EXPECT_EQ(second.data(), data);
  Arena third = *Arena::Create(200, "test");
  third = std::move(second);
  EXPECT_EQ(third.data(), data);
  EXPECT_EQ(third.size_bytes(), 100);
}

TEST(ArenaTest, NothingIsNoMemory) {
  const auto arena = Arena::Create(0, "test");
  ASSERT_TRUE(arena.ok());
  EXPECT_EQ(arena->data(), nullptr);
}

TEST(ArenaTest, WhatTheSystemRefusesIsResourceExhaustedAndSaysForWhat) {
  const absl::Status status = Arena::Create(int64_t{1} << 60, "the moon").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("the moon"));
}

}  // namespace
}  // namespace kvist::worker
