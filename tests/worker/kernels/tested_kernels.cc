#include "tests/worker/kernels/tested_kernels.h"

#include <algorithm>

namespace kvist::worker {

extern const KernelTable kEmulatedAvx512VnniKernels;  // emulated_avx512.cc

std::vector<const KernelTable*> TestedKernels() {
  static const KernelTable emulated = [] {
    KernelTable table = kEmulatedAvx512VnniKernels;
    table.name = "avx512vnni_emulated";
    return table;
  }();
  std::vector<const KernelTable*> tables = AvailableKernels();
  const bool runs_avx2 = std::any_of(tables.begin(), tables.end(),
                                     [](const KernelTable* t) { return t->name == "avx2"; });
  if (runs_avx2) tables.push_back(&emulated);
  return tables;
}

bool IsEmulated(const KernelTable& table) {
  return table.product == kEmulatedAvx512VnniKernels.product;
}

}  // namespace kvist::worker
