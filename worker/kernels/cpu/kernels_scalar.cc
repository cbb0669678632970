// The table "scalar": no intrinsics, baseline flags.
#include <cstddef>
#include <cstdint>

#include "worker/kernels/cpu/dots_scalar.h"
#include "worker/kernels/cpu/kernel_tables.h"
#include "worker/kernels/cpu/product_types.h"
#include "worker/kernels/cpu/vec16_scalar.h"
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

const KernelTable kScalarKernels = {
    "scalar",     QuantizeRows, Product, RmsNorm,   Rope,           AddInto, ScaleBy,
    SiluMultiply, GeluMultiply, StoreKv, Attention, MergeAttention, ArgMax,
};

}  // namespace kvist::worker
