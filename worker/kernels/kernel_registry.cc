#include <cpuid.h>
#include <immintrin.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/status.h"
#include "worker/kernels/cpu/kernel_tables.h"
#include "worker/kernels/kernel_table.h"

namespace kvist::worker {
namespace {

// The builtins also ask whether the operating system saves the registers (XCR0); F16C has no
// builtin in every compiler.
bool RunsAvx2() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  const bool has_f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
  return has_f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

// What kernels_avx512vnni.cc is compiled for.
bool RunsAvx512Vnni() {
  return RunsAvx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}

}  // namespace

// K and V of one page as floats, the running and merged output and the query of each row of a tile,
// and all queries once more, rotated (attention.inc).
int64_t AttentionScratchFloats(int64_t head_dim, int64_t heads, int64_t queries) {
  const int64_t rows = heads * queries < kAttentionTileRows ? heads * queries : kAttentionTileRows;
  return head_dim * (2 * kPageTokens + 3 * rows + heads * queries);
}

std::vector<const KernelTable*> AvailableKernels() {
  std::vector<const KernelTable*> tables = {&kScalarKernels};
  if (RunsAvx2()) tables.push_back(&kAvx2Kernels);
  if (RunsAvx512Vnni()) tables.push_back(&kAvx512VnniKernels);
  return tables;
}

absl::StatusOr<const KernelTable*> SelectKernels(std::string_view name) {
  const std::vector<const KernelTable*> tables = AvailableKernels();
  if (name.empty() || name == "auto") return tables.back();
  for (const KernelTable* table : tables) {
    if (table->name == name) return table;
  }
  const std::string names =
      absl::StrJoin(tables, ", ", [](std::string* out, const KernelTable* table) {
        absl::StrAppend(out, ToAbsl(table->name));
      });
  return absl::InvalidArgumentError(absl::StrCat(
      "kernels \"", ToAbsl(name), "\" are not available on this CPU; available: auto, ", names));
}

void SetFloatEnvironment() {
  constexpr unsigned kFlushToZero = 0x8000;
  constexpr unsigned kDenormalsAreZero = 0x0040;
  _mm_setcsr(_mm_getcsr() | kFlushToZero | kDenormalsAreZero);
}

}  // namespace kvist::worker
