// Makes GGUF files in memory: good ones and, on purpose, bad ones.
#ifndef KVIST_TESTS_SUPPORT_GGUF_BUILDER_H_
#define KVIST_TESTS_SUPPORT_GGUF_BUILDER_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace kvist::testing {

// Appends metadata and tensors in the order of the calls. Nothing is checked, so that files can be
// wrong in any way: counts and offsets can be overridden, and raw bytes put anywhere.
// Single-threaded.
class GgufBuilder {
 public:
  // Numbers of the format's value types.
  enum Type : uint32_t {
    kUint8,
    kInt8,
    kUint16,
    kInt16,
    kUint32,
    kInt32,
    kFloat32,
    kBool,
    kString,
    kArray,
    kUint64,
    kInt64,
    kFloat64
  };

  // A tensor as the file will say it. `data` follows the previous tensor's, aligned;
  // `offset_bytes`, if set, is what the directory says instead of its true place.
  struct Tensor {
    std::string name;
    std::vector<uint64_t> dims;
    uint32_t type = 0;
    std::string data;
    std::optional<uint64_t> offset_bytes = std::nullopt;
  };

  // One value of `type`, whose C++ type must be T.
  template <typename T>
  requires std::is_arithmetic_v<T> GgufBuilder& Add(std::string_view key, Type type, T value) {
    Key(key, type);
    Put(metadata_, value);
    return *this;
  }
  GgufBuilder& AddString(std::string_view key, std::string_view value);
  GgufBuilder& AddStrings(std::string_view key, const std::vector<std::string>& values);
  template <typename T>
  requires std::is_arithmetic_v<T> GgufBuilder& AddArray(std::string_view key, Type type,
                                                         const std::vector<T>& values) {
    Key(key, kArray);
    Put(metadata_, static_cast<uint32_t>(type));
    Put(metadata_, static_cast<uint64_t>(values.size()));
    for (const T value : values) Put(metadata_, value);
    return *this;
  }
  // A key with value bytes of any kind, well formed or not.
  GgufBuilder& AddRaw(std::string_view key, uint32_t type, std::string_view value_bytes);
  GgufBuilder& AddTensor(Tensor tensor);

  GgufBuilder& Version(uint32_t version) {
    version_ = version;
    return *this;
  }
  GgufBuilder& Magic(std::string_view magic) {
    magic_ = magic;
    return *this;
  }
  GgufBuilder& TensorCount(uint64_t count) {
    tensor_count_ = count;
    return *this;
  }
  GgufBuilder& MetadataCount(uint64_t count) {
    metadata_count_ = count;
    return *this;
  }
  // Alignment used for laying out data; a file that says so needs the key general.alignment too.
  GgufBuilder& Alignment(uint64_t bytes) {
    alignment_bytes_ = bytes;
    return *this;
  }

  std::string Build() const;

  // The little-endian bytes of a number, for AddRaw.
  template <typename T>
  static std::string Bytes(T value) {
    std::string bytes;
    Put(bytes, value);
    return bytes;
  }
  // A length and the text, for AddRaw.
  static std::string StringBytes(std::string_view text);

 private:
  template <typename T>
  static void Put(std::string& out, T value) {
    out.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  void Key(std::string_view key, uint32_t type);

  std::string magic_ = "GGUF";
  uint32_t version_ = 3;
  uint64_t alignment_bytes_ = 32;
  std::optional<uint64_t> tensor_count_;
  std::optional<uint64_t> metadata_count_;
  uint64_t entries_ = 0;
  std::string metadata_;
  std::vector<Tensor> tensors_;
};

// The bytes of `text` as the GGUF reader takes them; they point into `text`.
std::span<const std::byte> AsBytes(std::string_view text);

}  // namespace kvist::testing

#endif  // KVIST_TESTS_SUPPORT_GGUF_BUILDER_H_
