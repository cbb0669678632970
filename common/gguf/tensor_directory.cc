#include "common/gguf/tensor_directory.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "common/base/int_math.h"
#include "common/base/status.h"
#include "common/gguf/limits.h"
#include "common/gguf/metadata_parser.h"

namespace kvist::gguf {
namespace {

// A directory entry whose data is not yet resolved.
struct Entry {
  TensorInfo info;
  uint64_t offset_bytes = 0;  // from the start of the data section
  uint64_t size_bytes = 0;
};

std::string FieldOf(const TensorInfo& info) {
  return absl::StrCat("tensor '", Printable(info.name), "'");
}

// Bytes of a tensor: whole blocks along dims[0], times the other dimensions.
absl::StatusOr<uint64_t> SizeBytes(const TensorInfo& info) {
  const BlockShape block = BlockShapeOf(info.type);
  if (info.cols() % block.elements != 0) {
    return InvalidField(
        FieldOf(info),
        absl::StrCat("a row of ", info.cols(), " values is no whole number of ",
                     ToAbsl(TensorTypeName(info.type)), " blocks of ", block.elements));
  }
  std::optional<int64_t> size = CheckedMultiply(info.cols() / block.elements, block.bytes);
  std::optional<int64_t> elements = info.cols();
  for (size_t d = 1; d < info.dims.size() && size && elements; ++d) {
    size = CheckedMultiply(*size, info.dims[d]);
    elements = CheckedMultiply(*elements, info.dims[d]);
  }
  if (!size || !elements) return InvalidField(FieldOf(info), "the dimensions overflow 63 bits");
  return static_cast<uint64_t>(*size);
}

absl::StatusOr<Entry> ReadEntry(ByteReader& reader, uint64_t index, uint64_t alignment_bytes) {
  Entry entry;
  const std::string place = absl::StrCat("tensor[", index, "].name");
  KVIST_ASSIGN_OR_RETURN(const std::string_view name,
                         ReadString(reader, place, kMaxTensorNameBytes));
  if (name.empty()) return InvalidField(place, "is empty");
  entry.info.name = std::string(name);
  const std::string field = FieldOf(entry.info);

  uint32_t dimensions = 0;
  if (!reader.Read(&dimensions)) return CutOff(field, reader.offset());
  if (dimensions > kMaxDimensions) {
    return InvalidField(
        field, absl::StrCat(dimensions, " dimensions are over the limit of ", kMaxDimensions));
  }
  for (uint32_t d = 0; d < dimensions; ++d) {
    uint64_t dim = 0;
    if (!reader.Read(&dim)) return CutOff(field, reader.offset());
    if (dim == 0 || dim > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return InvalidField(field, absl::StrCat("dimension ", d, " is ", dim));
    }
    entry.info.dims.push_back(static_cast<int64_t>(dim));
  }
  uint32_t type = 0;
  if (!reader.Read(&type) || !reader.Read(&entry.offset_bytes)) {
    return CutOff(field, reader.offset());
  }
  const std::optional<TensorType> known = TensorTypeFromNumber(type);
  if (!known) {
    return InvalidField(field, absl::StrCat("element type number ", type, " is not supported"));
  }
  entry.info.type = *known;
  if (entry.offset_bytes % alignment_bytes != 0) {
    return InvalidField(field, absl::StrCat("data offset ", entry.offset_bytes,
                                            " is no multiple of the alignment ", alignment_bytes));
  }
  KVIST_ASSIGN_OR_RETURN(entry.size_bytes, SizeBytes(entry.info));
  return entry;
}

// Overlapping data would let one tensor's bytes be read as another's; no writer makes such files.
absl::Status CheckDisjoint(const std::vector<Entry>& entries) {
  std::vector<const Entry*> by_offset;
  by_offset.reserve(entries.size());
  for (const Entry& entry : entries) by_offset.push_back(&entry);
  std::sort(by_offset.begin(), by_offset.end(),
            [](const Entry* a, const Entry* b) { return a->offset_bytes < b->offset_bytes; });
  for (size_t i = 1; i < by_offset.size(); ++i) {
    const Entry& left = *by_offset[i - 1];
    const Entry& right = *by_offset[i];
    if (right.offset_bytes - left.offset_bytes < left.size_bytes) {
      return InvalidField(FieldOf(right.info),
                          absl::StrCat("its data overlaps ", FieldOf(left.info)));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<TensorInfo>> ParseTensorDirectory(ByteReader& reader, uint64_t count,
                                                             uint64_t alignment_bytes,
                                                             std::span<const std::byte> file) {
  std::vector<Entry> entries;
  absl::flat_hash_set<std::string> names;
  for (uint64_t i = 0; i < count; ++i) {
    KVIST_ASSIGN_OR_RETURN(Entry entry, ReadEntry(reader, i, alignment_bytes));
    if (!names.insert(entry.info.name).second) {
      return InvalidField(FieldOf(entry.info), "the name appears twice");
    }
    entries.push_back(std::move(entry));
  }
  // The reader is inside the file, so rounding up by a page cannot overflow.
  const uint64_t data_start = RoundUp<uint64_t>(reader.offset(), alignment_bytes);
  const uint64_t data_bytes = data_start <= file.size() ? file.size() - data_start : 0;
  for (Entry& entry : entries) {
    if (entry.offset_bytes > data_bytes || entry.size_bytes > data_bytes - entry.offset_bytes) {
      return InvalidField(
          FieldOf(entry.info),
          absl::StrCat("its data (", entry.size_bytes, " bytes at offset ", entry.offset_bytes,
                       ") ends after the file; is the file cut off?"));
    }
    entry.info.data = file.subspan(data_start + entry.offset_bytes, entry.size_bytes);
  }
  KVIST_RETURN_IF_ERROR(CheckDisjoint(entries));
  std::vector<TensorInfo> tensors;
  tensors.reserve(entries.size());
  for (Entry& entry : entries) tensors.push_back(std::move(entry.info));
  return tensors;
}

}  // namespace kvist::gguf
