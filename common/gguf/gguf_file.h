// Reader of GGUF model files (version 2 and 3, little endian; format: ggml's docs/gguf.md). Files
// are untrusted: every count, length and offset is checked before use, and an error names the
// field.
#ifndef KVIST_COMMON_GGUF_GGUF_FILE_H_
#define KVIST_COMMON_GGUF_GGUF_FILE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/gguf/tensor_type.h"

namespace kvist::gguf {

// A metadata value. Integers are widened to 64 bits, floats to double; arrays are homogeneous and
// not nested.
using Value = std::variant<uint64_t, int64_t, double, bool, std::string, std::vector<int64_t>,
                           std::vector<float>, std::vector<bool>, std::vector<std::string>>;

// A tensor's place. `dims` in the file's order: dims[0] is the contiguous one (columns), up to 4.
struct TensorInfo {
  std::string name;
  TensorType type;
  std::vector<int64_t> dims;
  std::span<const std::byte> data;  // inside the File that returned it

  int64_t cols() const { return dims.empty() ? 1 : dims[0]; }
  int64_t rows() const;  // product of dims[1..]
};

// An opened model file: metadata and tensor directory over a read-only mapping. Owns the mapping;
// spans and views live as long as it. Thread-compatible (const after Open).
class File {
 public:
  // Maps and parses `path`. NOT_FOUND / PERMISSION_DENIED if it cannot be opened; INVALID_ARGUMENT
  // naming the field for anything malformed or beyond a limit (limits.h).
  static absl::StatusOr<std::unique_ptr<const File>> Open(const std::string& path);
  // Parses bytes owned by the caller, which must outlive the File. Errors as Open.
  static absl::StatusOr<std::unique_ptr<const File>> Parse(std::span<const std::byte> bytes);

  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File();

  // As given to Open; empty for one that was parsed from bytes.
  const std::string& path() const { return path_; }
  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  // nullptr if there is none of that name.
  const TensorInfo* FindTensor(std::string_view name) const;

  // nullptr if the key is absent.
  const Value* FindValue(std::string_view key) const;
  // Typed look-ups. NOT_FOUND if absent; INVALID_ARGUMENT naming the key if of another type or out
  // of range.
  absl::StatusOr<int64_t> GetInt(std::string_view key) const;
  absl::StatusOr<double> GetFloat(std::string_view key) const;  // integers convert
  absl::StatusOr<bool> GetBool(std::string_view key) const;
  absl::StatusOr<std::string> GetString(std::string_view key) const;
  absl::StatusOr<const std::vector<std::string>*> GetStrings(std::string_view key) const;
  absl::StatusOr<const std::vector<float>*> GetFloats(std::string_view key) const;
  absl::StatusOr<const std::vector<int64_t>*> GetInts(std::string_view key) const;

  // SHA-256 over the whole file, lower-case hex: the model's fingerprint. Computed at the first
  // call (about a second per GB), then kept. Thread-safe.
  std::string Fingerprint() const;

 private:
  File() = default;
  absl::Status ParseBytes(std::span<const std::byte> bytes);

  struct Mapping;
  std::string path_;
  std::unique_ptr<Mapping> mapping_;
  std::span<const std::byte> bytes_;
  absl::flat_hash_map<std::string, Value> values_;
  std::vector<TensorInfo> tensors_;
  absl::flat_hash_map<std::string, size_t> tensor_by_name_;
};

}  // namespace kvist::gguf

#endif  // KVIST_COMMON_GGUF_GGUF_FILE_H_
