// A decode step takes no memory: every operator new while Run works is counted.
#include <cstdint>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/allocation_counter.h"
#include "tests/support/tiny_model.h"

namespace kvist::testing {
namespace {

TEST(AllocationTest, RunTakesNoMemory) {
  for (const int threads : {1, 2}) {
    for (const char* model : {"llama_a.Q4_1", "gemma3_a.Q4_0", "qwen3_k.Q4_K"}) {
      worker::CpuBackendOptions options = TinyOptions();
      options.threads = threads;
      options.kernels = "auto";
      options.kv_formats = {worker::KvFormat::kF16, worker::KvFormat::kQ8};
      const auto backend = OpenTinyModel(model, options);
      BlockSource blocks(*backend);
      TestSequence first(*backend, blocks, worker::KvFormat::kF16);
      TestSequence second(*backend, blocks, worker::KvFormat::kQ8);
      const std::vector<int32_t> tokens(70, 3);
      for (const size_t count : {size_t{1}, size_t{70}, size_t{2}}) {
        worker::Batch batch;
        batch.slices.push_back(first.Append({tokens.data(), count}, 1));
        batch.slices.push_back(second.Append({tokens.data(), 1}, 1));
        StartCountingAllocations();
        const bool ok = backend->Run(batch).ok();
        const int64_t taken = StopCountingAllocations();
        EXPECT_TRUE(ok);
        EXPECT_EQ(taken, 0) << model << ", " << count << " tokens";
      }
    }
  }
}

}  // namespace
}  // namespace kvist::testing
