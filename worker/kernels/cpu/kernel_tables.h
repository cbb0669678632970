// The compiled tables, one per instruction set. Which of them may be called here: AvailableKernels
// (kernel_table.h).
#ifndef KVIST_WORKER_KERNELS_CPU_KERNEL_TABLES_H_
#define KVIST_WORKER_KERNELS_CPU_KERNEL_TABLES_H_

#include <cstdint>

#include "worker/kernels/kernel_operations.h"

namespace kvist::worker {

// Rows (query, head) that attention takes at a time: a page's K and V are converted to floats once
// for that many.
inline constexpr int kAttentionTileRows = 64;

extern const KernelTable kScalarKernels;
extern const KernelTable kAvx2Kernels;
extern const KernelTable kAvx512VnniKernels;

}  // namespace kvist::worker

#endif  // KVIST_WORKER_KERNELS_CPU_KERNEL_TABLES_H_
