// Which kernels run here. The operations and their contract: kernel_operations.h.
#ifndef KVIST_WORKER_KERNELS_KERNEL_TABLE_H_
#define KVIST_WORKER_KERNELS_KERNEL_TABLE_H_

#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/kernels/kernel_operations.h"
#include "worker/kernels/packed_matrix.h"

namespace kvist::worker {

// The tables that this CPU can run, best last; "scalar" is always there.
std::vector<const KernelTable*> AvailableKernels();
// `name` "auto" (or empty) picks the best. INVALID_ARGUMENT if unknown or not runnable here, with
// the names that are.
absl::StatusOr<const KernelTable*> SelectKernels(std::string_view name);
// Flushes denormals on the calling thread (part of the bits: every thread that computes calls it).
void SetFloatEnvironment();

}  // namespace kvist::worker

#endif  // KVIST_WORKER_KERNELS_KERNEL_TABLE_H_
