// Memory that the forward pass works in, taken at start.
#ifndef KVIST_WORKER_BACKEND_ROW_BUFFERS_H_
#define KVIST_WORKER_BACKEND_ROW_BUFFERS_H_

#include <cstdint>

#include "absl/status/status.h"
#include "worker/kernels/kernel_table.h"
#include "worker/tensor/arena.h"

namespace kvist::worker {

// Memory for quantised activations [rows, cols]. Thread-compatible.
class QuantizedBuffer {
 public:
  // RESOURCE_EXHAUSTED if there is no memory. REQUIRES: cols % kQuantBlock == 0.
  absl::Status Allocate(int64_t rows, int64_t cols);
  // The part that begins at (row, col). REQUIRES: col % 64 == 0, which keeps rows aligned.
  QuantizedRows At(int64_t row, int64_t col) const;
  int64_t taken_bytes() const;

 private:
  Buffer<int8_t> q_;
  Buffer<float> scale_;
  Buffer<float> scaled_sum_;
  Buffer<int16_t> pair_sums_;
  int64_t q_stride_ = 0;
  int64_t block_stride_ = 0;
};

// One member's own scratch.
struct LaneScratch {
  Buffer<float> gate;       // [kMaxPassRows * kGateCols]
  Buffer<float> up;         // as gate
  Buffer<float> attention;  // AttentionScratchFloats of the largest item
};

}  // namespace kvist::worker

#endif  // KVIST_WORKER_BACKEND_ROW_BUFFERS_H_
