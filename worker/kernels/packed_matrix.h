// Weight matrices in the layout that the CPU kernels read ("R16"): panels of 16 output rows,
// interleaved so that each SIMD lane owns one row and no horizontal sum is needed (KERNELS.md 1.1).
#ifndef KVIST_WORKER_KERNELS_PACKED_MATRIX_H_
#define KVIST_WORKER_KERNELS_PACKED_MATRIX_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/statusor.h"
#include "common/gguf/tensor_type.h"
#include "worker/kernels/packed_layout.h"

namespace kvist::worker {

// Whether the type's products take activations quantised to 8 bits (block-quantised weights) or
// floats (F32, F16, BF16).
bool UsesQuantizedActivations(gguf::TensorType type);

// Bytes of one packed panel / of the whole packed matrix. INVALID_ARGUMENT if a row is not a whole
// number of blocks.
absl::StatusOr<int64_t> PackedPanelBytes(gguf::TensorType type, int64_t cols);
absl::StatusOr<int64_t> PackedBytes(gguf::TensorType type, int64_t rows, int64_t cols);

// Packs rows [16 * first_panel, 16 * last_panel) of a [rows, cols] GGUF tensor into `out` (the
// whole matrix's packed bytes, 64-byte aligned). Lossless: a pure permutation of the tensor's
// information. REQUIRES: sizes agree.
void PackPanels(gguf::TensorType type, int64_t rows, int64_t cols,
                std::span<const std::byte> source, int64_t first_panel, int64_t last_panel,
                std::span<std::byte> out);

// The values of row `row`: the same floats as Dequantize gives for the tensor's stored row.
// REQUIRES: 0 <= row < matrix.rows, out.size() == matrix.cols.
void UnpackRow(const PackedMatrix& matrix, int64_t row, std::span<float> out);

}  // namespace kvist::worker

#endif  // KVIST_WORKER_KERNELS_PACKED_MATRIX_H_
