// Arguments between the product loops and the integer dot products of each instruction set. Plain
// data, no functions: what is included by a file compiled for a wider instruction set must not
// define inline functions that the linker could share.
#ifndef KVIST_WORKER_KERNELS_CPU_PRODUCT_TYPES_H_
#define KVIST_WORKER_KERNELS_CPU_PRODUCT_TYPES_H_

#include <cstdint>

namespace kvist::worker {

// The parts of one step (16 rows x 32 columns) of a packed block, each at the first row of a group
// of lanes; see packed_layout.h.
struct WeightStep {
  const uint8_t* q;
  const uint8_t* high;  // null where the type has none
  const int8_t* scale;  // Q6_K: [2][16]
};

// Quantised activations of a tile of columns (tokens): row t of the tile is t strides further.
struct TileInput {
  const int8_t* q;
  int64_t q_stride;
  const float* scale;
  const float* scaled_sum;
  int64_t block_stride;
  const int16_t* half_sums;
};

}  // namespace kvist::worker

#endif  // KVIST_WORKER_KERNELS_CPU_PRODUCT_TYPES_H_
