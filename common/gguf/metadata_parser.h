// The metadata section of a GGUF file: keys and typed values.
#ifndef KVIST_COMMON_GGUF_METADATA_PARSER_H_
#define KVIST_COMMON_GGUF_METADATA_PARSER_H_

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/gguf/byte_reader.h"
#include "common/gguf/gguf_file.h"

namespace kvist::gguf {

using Metadata = absl::flat_hash_map<std::string, Value>;

// Reads `count` entries at `reader`. INVALID_ARGUMENT naming the entry or the key: cut off, a limit
// passed, an unknown value type, a nested array, a key that appears twice. REQUIRES: count <=
// kMaxMetadataEntries.
absl::StatusOr<Metadata> ParseMetadata(ByteReader& reader, uint64_t count);

// Reads a string with its 64-bit length. INVALID_ARGUMENT naming `field`: cut off, or longer than
// `limit_bytes`.
absl::StatusOr<std::string_view> ReadString(ByteReader& reader, std::string_view field,
                                            uint64_t limit_bytes);

// The error of a file that ends inside `field`.
absl::Status CutOff(std::string_view field, size_t offset);

// `name` as it can be shown in a message: bytes outside printable text become escapes, and it is
// cut to 80 bytes.
std::string Printable(std::string_view name);

}  // namespace kvist::gguf

#endif  // KVIST_COMMON_GGUF_METADATA_PARSER_H_
