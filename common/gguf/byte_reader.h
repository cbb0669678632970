// Reading little-endian values from bytes that may end anywhere.
#ifndef KVIST_COMMON_GGUF_BYTE_READER_H_
#define KVIST_COMMON_GGUF_BYTE_READER_H_

#include <bit>
#include <cstddef>
#include <cstring>
#include <span>
#include <string_view>
#include <type_traits>

namespace kvist::gguf {

static_assert(std::endian::native == std::endian::little, "GGUF is read by copying bytes");

// A position in bytes owned by somebody else. Every read says whether the bytes were there; a
// failed read moves nothing. Thread-compatible.
class ByteReader {
 public:
  explicit ByteReader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  size_t offset() const { return offset_; }
  size_t remaining() const { return bytes_.size() - offset_; }

  // Copies the next value to `*value`; false if fewer than sizeof(T) bytes are left.
  template <typename T>
  requires std::is_arithmetic_v<T>
  [[nodiscard]] bool Read(T* value) {
    if (remaining() < sizeof(T)) return false;
    std::memcpy(value, bytes_.data() + offset_, sizeof(T));
    offset_ += sizeof(T);
    return true;
  }

  // Points `*text` at the next `size` bytes; false if fewer are left.
  [[nodiscard]] bool ReadBytes(size_t size, std::string_view* text) {
    if (remaining() < size) return false;
    *text = {reinterpret_cast<const char*>(bytes_.data()) + offset_, size};
    offset_ += size;
    return true;
  }

 private:
  std::span<const std::byte> bytes_;
  size_t offset_ = 0;
};

}  // namespace kvist::gguf

#endif  // KVIST_COMMON_GGUF_BYTE_READER_H_
