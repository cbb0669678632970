// The kernel tables that tests compare.
#ifndef KVIST_TESTS_WORKER_KERNELS_TESTED_KERNELS_H_
#define KVIST_TESTS_WORKER_KERNELS_TESTED_KERNELS_H_

#include <vector>

#include "worker/kernels/kernel_table.h"

namespace kvist::worker {

// AvailableKernels and, on CPUs with AVX2, "avx512vnni_emulated": the AVX-512 table's source
// compiled for AVX2. The scalar table is the first.
std::vector<const KernelTable*> TestedKernels();
// Emulated tables are some ten times slower: long tests may try fewer cases with them.
bool IsEmulated(const KernelTable& table);

}  // namespace kvist::worker

#endif  // KVIST_TESTS_WORKER_KERNELS_TESTED_KERNELS_H_
