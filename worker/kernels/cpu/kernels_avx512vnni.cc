// The table "avx512vnni": needs AVX-512 F, BW, DQ, VL and VNNI, FMA and F16C. Everything here has
// internal linkage except the table: an inline function compiled with these flags must never be the
// copy that the linker keeps for the others (no_shared_symbols_avx512vnni).
#include <cstddef>
#include <cstdint>

#include "worker/kernels/cpu/dots_avx512vnni.h"
#include "worker/kernels/cpu/kernel_tables.h"
#include "worker/kernels/cpu/product_types.h"
#include "worker/kernels/cpu/vec16_avx512.h"
#include "worker/kernels/kernel_operations.h"
#include "worker/kernels/packed_layout.h"

namespace kvist::worker {
namespace {

// In the order of use.
// clang-format off
#include "worker/kernels/cpu/exponential.inc"
#include "worker/kernels/cpu/elementwise.inc"
#include "worker/kernels/cpu/kv_pages.inc"
#include "worker/kernels/cpu/attention.inc"
#include "worker/kernels/cpu/product.inc"
// clang-format on

}  // namespace

const KernelTable kAvx512VnniKernels = {
    "avx512vnni", QuantizeRows, Product, RmsNorm,   Rope,           AddInto, ScaleBy,
    SiluMultiply, GeluMultiply, StoreKv, Attention, MergeAttention, ArgMax,
};

}  // namespace kvist::worker
