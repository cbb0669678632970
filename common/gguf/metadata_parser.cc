#include "common/gguf/metadata_parser.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "common/gguf/limits.h"

namespace kvist::gguf {
namespace {

// Numbers of the file format.
enum class ValueType : uint32_t {
  kUint8 = 0,
  kInt8 = 1,
  kUint16 = 2,
  kInt16 = 3,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kUint64 = 10,
  kInt64 = 11,
  kFloat64 = 12,
};

constexpr uint32_t kLastValueType = static_cast<uint32_t>(ValueType::kFloat64);

// Smallest number of bytes that an element takes in the file.
uint64_t MinimumBytes(ValueType type) {
  switch (type) {
    case ValueType::kUint8:
    case ValueType::kInt8:
    case ValueType::kBool:
      return 1;
    case ValueType::kUint16:
    case ValueType::kInt16:
      return 2;
    case ValueType::kUint32:
    case ValueType::kInt32:
    case ValueType::kFloat32:
      return 4;
    default:
      return 8;
  }
}

// The type that holds a widened T in a Value.
template <typename T>
using Widened = std::conditional_t<std::is_floating_point_v<T>, double,
                                   std::conditional_t<std::is_unsigned_v<T>, uint64_t, int64_t>>;

template <typename T>
absl::StatusOr<Value> ReadNumber(ByteReader& reader, std::string_view field) {
  T value{};
  if (!reader.Read(&value)) return CutOff(field, reader.offset());
  return Value(static_cast<Widened<T>>(value));
}

absl::StatusOr<bool> ReadBool(ByteReader& reader, std::string_view field) {
  uint8_t value = 0;
  if (!reader.Read(&value)) return CutOff(field, reader.offset());
  if (value > 1) return InvalidField(field, "a bool is neither 0 nor 1");
  return value == 1;
}

template <typename T>
absl::StatusOr<Value> ReadNumbers(ByteReader& reader, std::string_view field, uint64_t count) {
  using Element = std::conditional_t<std::is_floating_point_v<T>, float, int64_t>;
  std::vector<Element> values;
  values.reserve(count);
  for (uint64_t i = 0; i < count; ++i) {
    T value{};
    if (!reader.Read(&value)) return CutOff(field, reader.offset());
    if constexpr (std::is_same_v<T, uint64_t>) {
      if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
        return InvalidField(absl::StrCat(ToAbsl(field), "[", i, "]"), "does not fit in 63 bits");
      }
    }
    values.push_back(static_cast<Element>(value));
  }
  return Value(std::move(values));
}

absl::StatusOr<Value> ReadBools(ByteReader& reader, std::string_view field, uint64_t count) {
  std::vector<bool> values;
  values.reserve(count);
  for (uint64_t i = 0; i < count; ++i) {
    KVIST_ASSIGN_OR_RETURN(const bool value, ReadBool(reader, field));
    values.push_back(value);
  }
  return Value(std::move(values));
}

absl::StatusOr<Value> ReadStrings(ByteReader& reader, std::string_view field, uint64_t count) {
  std::vector<std::string> values;
  values.reserve(count);
  for (uint64_t i = 0; i < count; ++i) {
    uint64_t size = 0;
    std::string_view text;
    const bool fits = reader.Read(&size) && size <= kMaxArrayStringBytes;
    if (!fits || !reader.ReadBytes(size, &text)) {
      const std::string element = absl::StrCat(ToAbsl(field), "[", i, "]");
      if (size > kMaxArrayStringBytes) {
        return InvalidField(element, absl::StrCat("length ", size, " is over the limit of ",
                                                  kMaxArrayStringBytes, " bytes"));
      }
      return CutOff(element, reader.offset());
    }
    values.emplace_back(text);
  }
  return Value(std::move(values));
}

absl::StatusOr<ValueType> ReadType(ByteReader& reader, std::string_view field) {
  uint32_t number = 0;
  if (!reader.Read(&number)) return CutOff(field, reader.offset());
  if (number > kLastValueType) {
    return InvalidField(field, absl::StrCat("unknown value type ", number));
  }
  return static_cast<ValueType>(number);
}

absl::StatusOr<Value> ReadArray(ByteReader& reader, std::string_view field) {
  KVIST_ASSIGN_OR_RETURN(const ValueType type, ReadType(reader, field));
  uint64_t count = 0;
  if (!reader.Read(&count)) return CutOff(field, reader.offset());
  if (type == ValueType::kArray) return InvalidField(field, "arrays of arrays are not allowed");
  if (count > kMaxArrayElements) {
    return InvalidField(field,
                        absl::StrCat(count, " elements are over the limit of ", kMaxArrayElements));
  }
  // Before anything is reserved: the file must be able to hold that many.
  if (count > reader.remaining() / MinimumBytes(type)) return CutOff(field, reader.offset());
  switch (type) {
    case ValueType::kUint8:
      return ReadNumbers<uint8_t>(reader, field, count);
    case ValueType::kInt8:
      return ReadNumbers<int8_t>(reader, field, count);
    case ValueType::kUint16:
      return ReadNumbers<uint16_t>(reader, field, count);
    case ValueType::kInt16:
      return ReadNumbers<int16_t>(reader, field, count);
    case ValueType::kUint32:
      return ReadNumbers<uint32_t>(reader, field, count);
    case ValueType::kInt32:
      return ReadNumbers<int32_t>(reader, field, count);
    case ValueType::kUint64:
      return ReadNumbers<uint64_t>(reader, field, count);
    case ValueType::kInt64:
      return ReadNumbers<int64_t>(reader, field, count);
    case ValueType::kFloat32:
      return ReadNumbers<float>(reader, field, count);
    case ValueType::kFloat64:
      return ReadNumbers<double>(reader, field, count);
    case ValueType::kBool:
      return ReadBools(reader, field, count);
    case ValueType::kString:
      return ReadStrings(reader, field, count);
    case ValueType::kArray:
      break;
  }
  return InvalidField(field, "arrays of arrays are not allowed");
}

absl::StatusOr<Value> ReadValue(ByteReader& reader, std::string_view field) {
  KVIST_ASSIGN_OR_RETURN(const ValueType type, ReadType(reader, field));
  switch (type) {
    case ValueType::kUint8:
      return ReadNumber<uint8_t>(reader, field);
    case ValueType::kInt8:
      return ReadNumber<int8_t>(reader, field);
    case ValueType::kUint16:
      return ReadNumber<uint16_t>(reader, field);
    case ValueType::kInt16:
      return ReadNumber<int16_t>(reader, field);
    case ValueType::kUint32:
      return ReadNumber<uint32_t>(reader, field);
    case ValueType::kInt32:
      return ReadNumber<int32_t>(reader, field);
    case ValueType::kUint64:
      return ReadNumber<uint64_t>(reader, field);
    case ValueType::kInt64:
      return ReadNumber<int64_t>(reader, field);
    case ValueType::kFloat32:
      return ReadNumber<float>(reader, field);
    case ValueType::kFloat64:
      return ReadNumber<double>(reader, field);
    case ValueType::kArray:
      return ReadArray(reader, field);
    case ValueType::kBool: {
      KVIST_ASSIGN_OR_RETURN(const bool value, ReadBool(reader, field));
      return Value(value);
    }
    case ValueType::kString: {
      KVIST_ASSIGN_OR_RETURN(const std::string_view text,
                             ReadString(reader, field, kMaxStringBytes));
      return Value(std::string(text));
    }
  }
  return InvalidField(field, "unknown value type");
}

}  // namespace

absl::Status CutOff(std::string_view field, size_t offset) {
  return InvalidField(field, absl::StrCat("the file is cut off (at byte ", offset, ")"));
}

std::string Printable(std::string_view name) {
  constexpr size_t kShownBytes = 80;
  return absl::CHexEscape(ToAbsl(name.substr(0, kShownBytes)));
}

absl::StatusOr<std::string_view> ReadString(ByteReader& reader, std::string_view field,
                                            uint64_t limit_bytes) {
  uint64_t size = 0;
  if (!reader.Read(&size)) return CutOff(field, reader.offset());
  if (size > limit_bytes) {
    return InvalidField(
        field, absl::StrCat("length ", size, " is over the limit of ", limit_bytes, " bytes"));
  }
  std::string_view text;
  if (!reader.ReadBytes(size, &text)) return CutOff(field, reader.offset());
  return text;
}

absl::StatusOr<Metadata> ParseMetadata(ByteReader& reader, uint64_t count) {
  Metadata metadata;
  for (uint64_t i = 0; i < count; ++i) {
    const std::string entry = absl::StrCat("metadata[", i, "].key");
    KVIST_ASSIGN_OR_RETURN(const std::string_view key, ReadString(reader, entry, kMaxKeyBytes));
    if (key.empty()) return InvalidField(entry, "is empty");
    const std::string shown = Printable(key);
    KVIST_ASSIGN_OR_RETURN(Value value, ReadValue(reader, shown));
    if (!metadata.emplace(std::string(key), std::move(value)).second) {
      return InvalidField(shown, "the key appears twice");
    }
  }
  return metadata;
}

}  // namespace kvist::gguf
