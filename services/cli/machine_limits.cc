#include "services/cli/machine_limits.h"

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "common/base/clock.h"
#include "common/base/status.h"
#include "worker/backend/thread_team.h"
#include "worker/kernels/cpu/int8_peak.h"
#include "worker/kernels/kernel_table.h"
#include "worker/tensor/arena.h"

namespace kvist::services {
namespace {

// Several times the largest caches of the machines meant here.
constexpr int64_t kBytes = int64_t{256} << 20;
constexpr int kPasses = 5;
constexpr int64_t kIterations = 5'000'000;

uint64_t SumOf(const uint64_t* words, int64_t count) {
  // Eight sums, so that the adder does not limit what memory delivers.
  uint64_t sums[8] = {};
  for (int64_t i = 0; i + 8 <= count; i += 8) {
    for (int64_t j = 0; j < 8; ++j) sums[j] += words[i + j];
  }
  uint64_t all = 0;
  for (const uint64_t sum : sums) all += sum;
  return all;
}

}  // namespace

absl::StatusOr<MachineLimits> MeasureLimits(int threads, std::string_view kernels) {
  KVIST_ASSIGN_OR_RETURN(const auto team,
                         worker::ThreadTeam::Create(threads, &worker::SetFloatEnvironment));
  KVIST_ASSIGN_OR_RETURN(const worker::Arena memory,
                         worker::Arena::Create(kBytes, "measuring the memory bandwidth"));
  const SystemClock clock;
  const int64_t words_each = kBytes / static_cast<int64_t>(sizeof(uint64_t)) / threads;
  auto* words = reinterpret_cast<uint64_t*>(memory.data());
  // Each thread touches its own part first: pages that nobody wrote are all the same zero page.
  team->Run([&](int thread) {
    std::fill_n(words + thread * words_each, words_each, static_cast<uint64_t>(thread) + 1);
  });
  MachineLimits limits;
  std::atomic<uint64_t> sum = 0;
  for (int pass = 0; pass < kPasses; ++pass) {
    const MonotonicTime start = clock.Now();
    team->Run([&](int thread) { sum += SumOf(words + thread * words_each, words_each); });
    const double seconds = SecondsBetween(start, clock.Now());
    const auto bytes = static_cast<double>(words_each * threads) * sizeof(uint64_t);
    limits.memory_bandwidth_bytes_per_second =
        std::max(limits.memory_bandwidth_bytes_per_second, bytes / seconds);
  }
  if (sum == 0) return absl::InternalError("the memory read is not the memory written");
  for (int pass = 0; pass < kPasses; ++pass) {
    std::atomic<int64_t> done = 0;
    const MonotonicTime start = clock.Now();
    team->Run([&](int) { done += worker::RunInt8MultiplyAdds(kernels, kIterations); });
    const double seconds = SecondsBetween(start, clock.Now());
    limits.int8_macs_per_second =
        std::max(limits.int8_macs_per_second, static_cast<double>(done.load()) / seconds);
  }
  return limits;
}

}  // namespace kvist::services
