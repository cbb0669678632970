// The parts of a backend's memory add up to what it took from the system: every anonymous mapping
// made while it is created is counted.
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "common/gguf/gguf_file.h"
#include "gtest/gtest.h"
#include "tests/support/model_files.h"
#include "tests/support/tiny_model.h"

namespace {
bool counting = false;
int64_t mapped_bytes = 0;
}  // namespace

// In place of the C library's for the program's own calls; the library's (thread stacks, the heap)
// do not come here.
extern "C" void* mmap(void* address, size_t length, int protection, int flags, int file,
                      off_t offset) noexcept {
  void* const result =
      reinterpret_cast<void*>(syscall(SYS_mmap, address, length, protection, flags, file, offset));
  if (counting && result != MAP_FAILED && file == -1) mapped_bytes += static_cast<int64_t>(length);
  return result;
}
extern "C" int munmap(void* address, size_t length) noexcept {
  if (counting) mapped_bytes -= static_cast<int64_t>(length);
  return static_cast<int>(syscall(SYS_munmap, address, length));
}

namespace kvist::testing {
namespace {

std::map<std::string_view, int64_t> PartsOf(const worker::Backend& backend) {
  std::map<std::string_view, int64_t> parts;
  for (const worker::MemoryPart& part : backend.memory()) parts[part.name] += part.bytes;
  return parts;
}

TEST(MemoryTest, ThePartsAddUpToWhatWasTakenFromTheSystem) {
  for (const char* model : {"llama_a.Q4_1", "llama_a.F32", "gemma3_a.Q8_0", "qwen2_tied.Q8_0"}) {
    const auto file = gguf::File::Open(GoldenPath("tiny/" + std::string(model) + ".gguf"));
    ASSERT_TRUE(file.ok()) << file.status();
    for (const int threads : {1, 3}) {
      worker::CpuBackendOptions options = TinyOptions();
      options.threads = threads;
      options.kv_formats = {worker::KvFormat::kF16, worker::KvFormat::kF32};
      options.blocks_per_pool = 3000;  // pools above and below the size of a huge page
      mapped_bytes = 0;
      counting = true;
      auto backend = worker::CreateCpuBackend(**file, options);
      counting = false;
      ASSERT_TRUE(backend.ok()) << backend.status();
      int64_t sum = 0;
      for (const auto& [name, bytes] : PartsOf(**backend)) {
        EXPECT_GT(bytes, 0) << model << ": " << name;
        sum += bytes;
      }
      EXPECT_EQ(sum, mapped_bytes) << model << ", " << threads << " threads";
      counting = true;
      backend->reset();
      counting = false;
      EXPECT_EQ(mapped_bytes, 0) << model << ": not all of it was given back";
    }
  }
}

TEST(MemoryTest, ThePoolsAreThePartThatGrowsWithTheirBlocks) {
  worker::CpuBackendOptions options = TinyOptions();
  const auto small = OpenTinyModel("llama_a.Q4_1", options);
  options.blocks_per_pool *= 4;
  const auto large = OpenTinyModel("llama_a.Q4_1", options);
  std::map<std::string_view, int64_t> before = PartsOf(*small);
  for (const auto& [name, bytes] : PartsOf(*large)) {
    if (name != "kv") {
      EXPECT_EQ(bytes, before[name]) << name;
      continue;
    }
    EXPECT_EQ(before[name], 64 * small->pools()[0].block_bytes);
    EXPECT_EQ(bytes, 256 * small->pools()[0].block_bytes);
  }
}

}  // namespace
}  // namespace kvist::testing
