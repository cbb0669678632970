// A step of decode takes no memory, from scheduling to the last sink: every operator new while Step
// runs is counted.
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/hash_reference.h"
#include "tests/support/simulated_clock.h"
#include "tests/support/tiny_model.h"
#include "worker/engine/engine_core.h"

namespace {
std::atomic<bool> counting{false};
std::atomic<int64_t> allocations{0};
}  // namespace

void* operator new(size_t size) {
  if (counting.load(std::memory_order_relaxed)) allocations.fetch_add(1);
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace kvist::worker {
namespace {

// Counts and keeps nothing.
class CountingSink final : public TokenSink {
 public:
  void OnTokens(std::span<const TokenOutput> tokens) override {
    count_ += static_cast<int64_t>(tokens.size());
  }
  void OnProgress(int64_t, int64_t) override {}
  void OnFinished(const FinishInfo&) override {}
  int64_t count() const { return count_; }

 private:
  int64_t count_ = 0;
};

struct SamplingRow {
  const char* name;
  SamplingOptions options;
};
const SamplingRow kSampling[] = {
    {"greedy", {}},
    {"sampled", {.temperature = 0.8f, .top_k = 40, .top_p = 0.9f, .min_p = 0.01f, .seed = 7}},
    {"penalties and logprobs",
     {.temperature = 0.8f, .repetition_penalty = 1.1f, .presence_penalty = 0.5f, .logprobs = 5}},
};

TEST(EngineAllocationTest, AStepOfDecodeTakesNoMemory) {
  for (const char* model : {"llama_a.Q4_1", "gemma3_a.Q4_0"}) {
    for (const SamplingRow& row : kSampling) {
      CpuBackendOptions options = kvist::testing::TinyOptions();
      options.threads = 2;
      options.kernels = "auto";
      const SimulatedClock clock;
      EngineCore core({}, kvist::testing::OpenTinyModel(model, options), &clock);
      auto sink = std::make_shared<CountingSink>();
      for (int i = 0; i < 3; ++i) {
        GenerateRequest request = RequestOf(Numbered("r", i), Ids(5 + 13 * i, i), 120);
        request.session = SessionId(Numbered("s", i));
        request.sampling = row.options;
        const absl::Status status = PrepareRequest(core.limits(), &request);
        ASSERT_TRUE(status.ok()) << status;
        core.Add(std::move(request), sink, clock.Now());
      }
      // Prefill, and so much decode that every reused buffer has had its full size.
      for (int i = 0; i < 20; ++i) ASSERT_TRUE(core.Step());
      const int64_t before = sink->count();
      // Over the ends of blocks of every sequence: they are named and new ones taken.
      constexpr int kSteps = 80;
      for (int i = 0; i < kSteps; ++i) {
        allocations = 0;
        counting = true;
        const bool ran = core.Step();
        counting = false;
        ASSERT_TRUE(ran);
        EXPECT_EQ(allocations.load(), 0) << model << ", " << row.name << ", step " << i;
      }
      EXPECT_EQ(sink->count() - before, 3 * kSteps);
      EXPECT_FALSE(core.idle());
    }
  }
}

}  // namespace
}  // namespace kvist::worker
