// The most 8-bit multiply-adds that a core can do, as a yardstick for benchmarks.
#ifndef KVIST_WORKER_KERNELS_CPU_INT8_PEAK_H_
#define KVIST_WORKER_KERNELS_CPU_INT8_PEAK_H_

#include <cstdint>
#include <string_view>

namespace kvist::worker {

// Runs `iterations` of the multiply-add that the kernels of that name use (u8 x s8, summed as
// cheaply as they ever do: AVX2 in 16 bits), in registers alone, and returns how many multiply-adds
// that were. Names as KernelTable::name; REQUIRES: that table can run here.
int64_t RunInt8MultiplyAdds(std::string_view kernels, int64_t iterations);

}  // namespace kvist::worker

#endif  // KVIST_WORKER_KERNELS_CPU_INT8_PEAK_H_
