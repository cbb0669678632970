// The tensor directory of a GGUF file: names, shapes, types and places.
#ifndef KVIST_COMMON_GGUF_TENSOR_DIRECTORY_H_
#define KVIST_COMMON_GGUF_TENSOR_DIRECTORY_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "common/gguf/byte_reader.h"
#include "common/gguf/gguf_file.h"

namespace kvist::gguf {

// Reads `count` tensor entries at `reader` over `file`, the whole file's bytes; tensor data begins
// at the first multiple of `alignment_bytes` after them. INVALID_ARGUMENT naming the tensor: cut
// off, a limit passed, a type that is not read, a row that is no whole number of blocks, data
// outside the file, misaligned or overlapping, a name twice. REQUIRES: count <= kMaxTensors;
// alignment_bytes is a power of two up to kMaxAlignmentBytes.
absl::StatusOr<std::vector<TensorInfo>> ParseTensorDirectory(ByteReader& reader, uint64_t count,
                                                             uint64_t alignment_bytes,
                                                             std::span<const std::byte> file);

}  // namespace kvist::gguf

#endif  // KVIST_COMMON_GGUF_TENSOR_DIRECTORY_H_
