// Limits on GGUF files. A file is untrusted until it has passed all of them; each bounds memory or
// time that a small hostile file could otherwise claim. The largest values seen in published models
// are far below.
#ifndef KVIST_COMMON_GGUF_LIMITS_H_
#define KVIST_COMMON_GGUF_LIMITS_H_

#include <cstdint>

namespace kvist::gguf {

// Metadata entries. Published files have fewer than 100; each costs a hash-table entry.
inline constexpr uint64_t kMaxMetadataEntries = 65'536;
// Tensors. The largest mixture-of-experts files have a few thousand; each costs about 150 bytes.
inline constexpr uint64_t kMaxTensors = 65'536;
// Bytes of a metadata key: the format's own limit (2^16 - 1).
inline constexpr uint64_t kMaxKeyBytes = 65'535;
// Bytes of a tensor name: the format's own limit.
inline constexpr uint64_t kMaxTensorNameBytes = 64;
// Bytes of one string value. Chat templates, the longest in use, are below 100 KB.
inline constexpr uint64_t kMaxStringBytes = 16 << 20;
// Bytes of one string in an array. Tokens and merges are below 1 KB.
inline constexpr uint64_t kMaxArrayStringBytes = 64 << 10;
// Elements of one array. Vocabularies have up to 262,144 tokens and 600,000 merges; in memory an
// element takes up to 32 bytes plus its text.
inline constexpr uint64_t kMaxArrayElements = 16 << 20;
// Dimensions of a tensor: the format's own limit.
inline constexpr uint32_t kMaxDimensions = 4;
// Alignment of tensor data, a power of two: one page, so that a mapping keeps it.
inline constexpr uint64_t kMaxAlignmentBytes = 4096;
// Alignment where the file does not say (the format's default).
inline constexpr uint64_t kDefaultAlignmentBytes = 32;

}  // namespace kvist::gguf

#endif  // KVIST_COMMON_GGUF_LIMITS_H_
