// A fixture for tests that step an engine core over the hash backend by hand.
#ifndef KVIST_TESTS_SUPPORT_HASH_ENGINE_TEST_H_
#define KVIST_TESTS_SUPPORT_HASH_ENGINE_TEST_H_

#include <chrono>
#include <cstdint>
#include <memory>
#include <utility>

#include "gtest/gtest.h"
#include "tests/support/hash_backend.h"
#include "tests/support/recording_sink.h"
#include "tests/support/simulated_clock.h"
#include "worker/engine/engine_core.h"

namespace kvist::worker {

// Invariants are checked after every step. Single-threaded.
class HashEngineTest : public ::testing::Test {
 protected:
  // With `backend` and `options` as they are now.
  void Make() {
    core = std::make_unique<EngineCore>(options, std::make_unique<HashBackend>(backend, control),
                                        &clock);
  }
  std::shared_ptr<RecordingSink> Add(GenerateRequest request) {
    const absl::Status status = PrepareRequest(core->limits(), &request);
    EXPECT_TRUE(status.ok()) << status;
    auto sink = std::make_shared<RecordingSink>(static_cast<int64_t>(request.generated_ids.size()));
    core->Add(std::move(request), sink, clock.Now());
    return sink;
  }
  // A millisecond later. False if nothing could run.
  bool Step() {
    clock.Advance(std::chrono::milliseconds(1));
    const bool ran = core->Step();
    EXPECT_TRUE(core->CheckInvariants().ok()) << core->CheckInvariants();
    return ran;
  }
  // Until no request lives; then nothing is active.
  void RunToEnd() {
    for (int step = 0; !core->idle(); ++step) {
      ASSERT_TRUE(Step()) << "live requests and nothing runs";
      ASSERT_LT(step, 100000);
    }
    ExpectNothingActive();
  }
  void ExpectNothingActive() {
    for (const auto& pool : core->state().pools) {
      EXPECT_EQ(pool->Counts().active, 0);
      EXPECT_EQ(pool->Counts().reserved, 0);
    }
    EXPECT_TRUE(core->CheckInvariants().ok()) << core->CheckInvariants();
  }

  HashBackendOptions backend;
  EngineOptions options;
  std::shared_ptr<HashBackendControl> control = std::make_shared<HashBackendControl>();
  SimulatedClock clock;
  std::unique_ptr<EngineCore> core;
};

}  // namespace kvist::worker

#endif  // KVIST_TESTS_SUPPORT_HASH_ENGINE_TEST_H_
