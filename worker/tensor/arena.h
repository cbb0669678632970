// Memory taken once at start: weights, KV pools, scratch.
#ifndef KVIST_WORKER_TENSOR_ARENA_H_
#define KVIST_WORKER_TENSOR_ARENA_H_

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <type_traits>
#include <utility>

#include "absl/status/statusor.h"

namespace kvist::worker {

// Zero-filled anonymous memory. From 2 MB on it begins at a multiple of 2 MB and asks for huge
// pages: a decode step walks over all of it, and with 4 KB pages the TLB misses cost a few per
// cent. Pages are taken from the system when first touched. Move-only; owns the mapping.
// Thread-compatible.
class Arena {
 public:
  Arena() = default;
  // RESOURCE_EXHAUSTED naming `purpose` and the size if the system refuses. REQUIRES: bytes >= 0.
  static absl::StatusOr<Arena> Create(int64_t bytes, std::string_view purpose);
  Arena(Arena&& other) noexcept { *this = std::move(other); }
  Arena& operator=(Arena&& other) noexcept;
  ~Arena() { Release(); }

  std::byte* data() const { return data_; }  // 64-byte aligned; nullptr when empty
  int64_t size_bytes() const { return size_bytes_; }
  // What it takes of the system's memory once touched: size_bytes, in whole pages.
  int64_t taken_bytes() const { return taken_bytes_; }
  // Whether the system was asked for huge pages and does not refuse them.
  bool huge_pages() const { return huge_pages_; }

 private:
  void Release();

  std::byte* data_ = nullptr;
  int64_t size_bytes_ = 0;
  int64_t taken_bytes_ = 0;  // of the mapping, which begins at data_
  bool huge_pages_ = false;
};

// An array of `count` zeroed values of a plain type in an arena of its own, 64-byte aligned.
// Thread-compatible.
template <typename T>
class Buffer {
  static_assert(std::is_trivial_v<T>);

 public:
  Buffer() = default;
  // Errors as Arena::Create.
  static absl::StatusOr<Buffer> Create(int64_t count, std::string_view purpose) {
    absl::StatusOr<Arena> arena = Arena::Create(count * static_cast<int64_t>(sizeof(T)), purpose);
    if (!arena.ok()) return arena.status();
    Buffer buffer;
    buffer.arena_ = *std::move(arena);
    return buffer;
  }
  T* data() const { return reinterpret_cast<T*>(arena_.data()); }
  int64_t size() const { return arena_.size_bytes() / static_cast<int64_t>(sizeof(T)); }
  int64_t taken_bytes() const { return arena_.taken_bytes(); }

 private:
  Arena arena_;
};

}  // namespace kvist::worker

#endif  // KVIST_WORKER_TENSOR_ARENA_H_
