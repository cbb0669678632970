// A decode step takes no memory: every operator new while Run works is counted.
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/tiny_model.h"

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
        allocations = 0;
        counting = true;
        const bool ok = backend->Run(batch).ok();
        counting = false;
        EXPECT_TRUE(ok);
        EXPECT_EQ(allocations.load(), 0) << model << ", " << count << " tokens";
      }
    }
  }
}

}  // namespace
}  // namespace kvist::testing
