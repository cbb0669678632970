// The contract of every CPU operation. One table per instruction set; all tables give the same bits
// for the same arguments, whatever the batch, the split over threads or the alignment of the split:
// integer dot products are exact and each output is one chain of float operations in a fixed order
// (KERNELS.md 5).
//
// Shapes are [rows, cols], row-major; floats are IEEE binary32 with denormals flushed on every
// thread alike (SetFloatEnvironment). Pointers to rows are 64-byte aligned where the comment says
// so.
//
// Plain data only: this header is included by files compiled for wider instruction sets.
// kernel_table.h chooses a table.
#ifndef KVIST_WORKER_KERNELS_KERNEL_OPERATIONS_H_
#define KVIST_WORKER_KERNELS_KERNEL_OPERATIONS_H_

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "worker/kernels/kv_page.h"
#include "worker/kernels/packed_layout.h"

namespace kvist::worker {

inline constexpr int64_t kQuantBlock = 32;  // activations: one scale per 32 values
inline constexpr int64_t kSplitTokens =
    256;  // attention: partial states restart at multiples of this position

// Activations [rows, cols] quantised per row and 32 columns: x ~ q * scale, |q| <= 127, round half
// to even, scale = max|x| / 127. REQUIRES: cols % 32 == 0; q rows 64-byte aligned (stride a
// multiple of 64).
struct QuantizedRows {
  int8_t* q = nullptr;          // [rows, q_stride]
  float* scale = nullptr;       // [rows, block_stride], one per 32 columns
  float* scaled_sum = nullptr;  // [rows, block_stride]: scale * sum of the block's q
  // [rows, 4 * block_stride], for weights stored with an offset. Two sums of q over the block's
  // columns c, c % 4 < 2 and c % 4 >= 2: what the 16-bit halves of a 32-bit lane add up. Then the
  // same two over its last 16 columns.
  int16_t* pair_sums = nullptr;
  int64_t q_stride = 0;
  int64_t block_stride = 0;
};

// Input of a product: floats always, quantised values where the weights ask for them
// (UsesQuantizedActivations).
struct ProductInput {
  int64_t rows = 0;          // tokens
  const float* x = nullptr;  // [rows, x_stride]
  int64_t x_stride = 0;
  QuantizedRows quantized;
};

// Keys and values of one (sequence, layer, kv head). Page p of the sequence (positions 16p ..
// 16p+15) starts at
//   arena + block_table[p / pages_per_block] * block_bytes + offset + (p % pages_per_block) *
//   page_stride
// and is laid out as kv_page.h says. REQUIRES: HoldsHeadDim(format, head_dim).
struct KvPages {
  KvFormat format = KvFormat::kF16;
  std::byte* arena = nullptr;
  const int32_t* block_table = nullptr;
  int64_t block_bytes = 0;
  int64_t pages_per_block = 1;
  int64_t offset = 0;       // of this layer and kv head inside a block
  int64_t page_stride = 0;  // between pages of this (layer, head) inside a block
};

// Attention of consecutive queries of one sequence for the heads that share one kv head.
struct AttentionTask {
  KvPages kv;
  int64_t head_dim = 0;  // multiple of 8
  int64_t heads = 0;     // query heads of this kv head
  int64_t queries = 0;   // consecutive positions first_position ..
  int64_t first_position = 0;
  int64_t window = 0;  // a query at p sees p-window+1 .. p; 0: all
  int64_t sinks = 0;   // and 0 .. sinks-1; below the window, 0 without one
  float scale = 1.0f;
  const float* q = nullptr;  // q[query * q_stride + head * head_dim + d]
  int64_t q_stride = 0;
  float* out = nullptr;  // same indexing with out_stride
  int64_t out_stride = 0;
  float* scratch = nullptr;  // AttentionScratchFloats(task) floats, 64-byte aligned
  // From 0 on: only positions [split, split + 1) * kSplitTokens, whose partial states go to
  // `partials` [queries * heads, head_dim + 2] (values, maximum, sum) instead of to `out`.
  int64_t split = -1;
  float* partials = nullptr;
};
// One query and head's partial states of splits 0 .. splits-1, which are overwritten, and its
// output: the same bits as one attention over all of them.
struct AttentionMergeTask {
  int64_t head_dim = 0;
  int64_t splits = 0;
  float* partials = nullptr;  // of split s: [head_dim + 2] at s * stride
  int64_t stride = 0;
  float* out = nullptr;  // [head_dim]
};
int64_t AttentionScratchFloats(int64_t head_dim, int64_t heads, int64_t queries);

// One position's K and V rows of one kv head, written into its page slot in the format (kv_page.h).
struct KvStoreTask {
  KvPages kv;
  int64_t head_dim = 0;
  int64_t position = 0;
  const float* k = nullptr;  // [head_dim]
  const float* v = nullptr;  // [head_dim]
};

enum class RopeStyle : uint8_t {
  kInterleaved,
  kHalves
};  // pairs (2i, 2i+1) as GGUF's llama; (i, i + d/2) as qwen, gemma

struct KernelTable {
  std::string_view name;  // "scalar", "avx2", "avx512vnni"

  // Quantises rows [0, rows) of x [rows, cols].
  void (*quantize_rows)(const float* x, int64_t x_stride, int64_t rows, int64_t cols,
                        const QuantizedRows& out);
  // y[t, r] = sum over c of w[r, c] * x[t, c] for all t and for rows r of panels [first_panel,
  // last_panel); rows beyond w.rows are not written. y_stride in floats.
  void (*product)(const PackedMatrix& w, int64_t first_panel, int64_t last_panel,
                  const ProductInput& x, float* y, int64_t y_stride);
  // y = x / sqrt(mean(x^2) + epsilon) * weight, per row. y may be x. Fixed 16-lane partial sums.
  void (*rms_norm)(const float* x, int64_t x_stride, int64_t rows, int64_t cols,
                   const float* weight, float epsilon, float* y, int64_t y_stride);
  // Rotates the first 2 * pairs values of each of `heads` vectors of head_dim floats in place;
  // cosine, sine: [pairs].
  void (*rope)(float* x, int64_t heads, int64_t head_dim, int64_t pairs, const float* cosine,
               const float* sine, RopeStyle style);
  // y[i] += x[i].
  void (*add)(float* y, const float* x, int64_t n);
  // x[i] *= factor.
  void (*scale)(float* x, float factor, int64_t n);
  // out[i] = silu(gate[i]) * up[i]; out may be gate.
  void (*silu_multiply)(const float* gate, const float* up, float* out, int64_t n);
  // out[i] = gelu_tanh(gate[i]) * up[i]; out may be gate.
  void (*gelu_multiply)(const float* gate, const float* up, float* out, int64_t n);
  void (*store_kv)(const KvStoreTask& task);
  // Online softmax over pages of 16, partial states restarted at multiples of 256 and merged in
  // ascending order; masked slots have weight exactly 0 and their K, V are never multiplied in.
  void (*attention)(const AttentionTask& task);
  void (*merge_attention)(const AttentionMergeTask& task);
  // Index of the largest of x[0, n), lowest index on ties. NaN never wins; all NaN gives 0.
  int64_t (*argmax)(const float* x, int64_t n);
};

}  // namespace kvist::worker

#endif  // KVIST_WORKER_KERNELS_KERNEL_OPERATIONS_H_
