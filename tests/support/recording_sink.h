// A sink that keeps what it was told and checks the contract of TokenSink on the way.
#ifndef KVIST_TESTS_SUPPORT_RECORDING_SINK_H_
#define KVIST_TESTS_SUPPORT_RECORDING_SINK_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "gtest/gtest.h"
#include "worker/engine/request.h"

namespace kvist::worker {

// Read by the test when the engine's thread does not run, or after finished. Single-threaded.
class RecordingSink : public TokenSink {
 public:
  explicit RecordingSink(int64_t first_index = 0) : next_index_(first_index) {}

  void OnTokens(std::span<const TokenOutput> tokens) override {
    EXPECT_FALSE(finished.has_value());
    EXPECT_FALSE(tokens.empty());
    for (const TokenOutput& token : tokens) {
      EXPECT_EQ(token.index, next_index_++);
      ids.push_back(token.id);
      outputs.push_back(token);
    }
  }
  void OnProgress(int64_t done_tokens, int64_t total_tokens) override {
    EXPECT_FALSE(finished.has_value());
    EXPECT_TRUE(ids.empty());
    EXPECT_LE(done_tokens, total_tokens);
    progress.push_back(done_tokens);
  }
  void OnFinished(const FinishInfo& info) override {
    EXPECT_FALSE(finished.has_value()) << "two terminal calls";
    finished = info;
    if (on_finished) on_finished();
  }

  std::vector<int32_t> ids;
  std::vector<TokenOutput> outputs;
  std::vector<int64_t> progress;
  std::optional<FinishInfo> finished;
  std::function<void()> on_finished;

 private:
  int64_t next_index_;
};

}  // namespace kvist::worker

#endif  // KVIST_TESTS_SUPPORT_RECORDING_SINK_H_
