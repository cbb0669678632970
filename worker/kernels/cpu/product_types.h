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
  const int16_t* pair_sums;
};

// Steps of a panel that are unpacked together: as many as leave room for activations in a 32 KB L1.
inline constexpr int kExpandedSteps = 20;

// One step of a panel unpacked: what many tokens' tiles read instead of the packed block.
struct ExpandedStep {
  alignas(64) uint8_t q[8][64];  // [word][16 rows][4]: stored integers, offset included
  float d[16];                   // of each row: what its integer dot product is multiplied by
  float m[16];                   // what the sum of its activations is multiplied by
  int16_t scale[2][32];          // Q6_K, of each 16 columns: [16 rows], twice in each lane
};

}  // namespace kvist::worker

#endif  // KVIST_WORKER_KERNELS_CPU_PRODUCT_TYPES_H_
