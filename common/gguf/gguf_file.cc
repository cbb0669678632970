#include "common/gguf/gguf_file.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <limits>
#include <mutex>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/int_math.h"
#include "common/base/status.h"
#include "common/gguf/byte_reader.h"
#include "common/gguf/limits.h"
#include "common/gguf/metadata_parser.h"
#include "common/gguf/tensor_directory.h"

namespace kvist::gguf {
namespace {

constexpr uint32_t kMagic = 0x46554747;  // "GGUF"
constexpr char kAlignmentKey[] = "general.alignment";

struct Header {
  uint64_t tensors = 0;
  uint64_t metadata_entries = 0;
};

absl::StatusOr<Header> ReadHeader(ByteReader& reader) {
  uint32_t magic = 0;
  uint32_t version = 0;
  Header header;
  if (!reader.Read(&magic)) return CutOff("magic", reader.offset());
  if (magic != kMagic) return InvalidField("magic", "the file does not begin with 'GGUF'");
  if (!reader.Read(&version)) return CutOff("version", reader.offset());
  if (version != 0 && (version & 0xFFFF) == 0) {
    return InvalidField("version", "big-endian files are not supported");
  }
  if (version != 2 && version != 3) {
    return InvalidField("version", absl::StrCat(version, " is not supported (2 and 3 are)"));
  }
  if (!reader.Read(&header.tensors)) return CutOff("tensor_count", reader.offset());
  if (header.tensors > kMaxTensors) {
    return InvalidField("tensor_count",
                        absl::StrCat(header.tensors, " is over the limit of ", kMaxTensors));
  }
  if (!reader.Read(&header.metadata_entries)) return CutOff("metadata_count", reader.offset());
  if (header.metadata_entries > kMaxMetadataEntries) {
    return InvalidField(
        "metadata_count",
        absl::StrCat(header.metadata_entries, " is over the limit of ", kMaxMetadataEntries));
  }
  return header;
}

absl::Status OpenError(const std::string& path, int error) {
  const std::string message = absl::StrCat(path, ": ", std::strerror(error));
  if (error == ENOENT || error == ENOTDIR) return absl::NotFoundError(message);
  if (error == EACCES || error == EPERM) return absl::PermissionDeniedError(message);
  return InvalidField("model", message);
}

absl::Status NoSuchKey(std::string_view key) {
  return WithDetails(absl::NotFoundError(absl::StrCat(ToAbsl(key), ": the key is missing")),
                     {.field = std::string(key)});
}

absl::Status WrongType(std::string_view key, std::string_view expected) {
  return InvalidField(key, absl::StrCat("is not ", ToAbsl(expected)));
}

template <typename T>
absl::StatusOr<const T*> GetAs(const Value* value, std::string_view key,
                               std::string_view expected) {
  if (value == nullptr) return NoSuchKey(key);
  const T* typed = std::get_if<T>(value);
  if (typed == nullptr) return WrongType(key, expected);
  return typed;
}

std::string Sha256Hex(std::span<const std::byte> bytes) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned int size = 0;
  // Fails only if OpenSSL has no SHA-256 or no memory.
  const int done =
      EVP_Digest(bytes.data(), bytes.size(), digest.data(), &size, EVP_sha256(), nullptr);
  KVIST_CHECK(done == 1);
  return absl::BytesToHexString({reinterpret_cast<const char*>(digest.data()), size});
}

}  // namespace

int64_t TensorInfo::rows() const {
  int64_t rows = 1;
  for (size_t d = 1; d < dims.size(); ++d) rows *= dims[d];
  return rows;
}

// The mapped memory (null after Parse) and the fingerprint once it was asked for.
struct File::Mapping {
  void* address = nullptr;
  size_t size_bytes = 0;
  std::once_flag fingerprint_once;
  std::string fingerprint;

  ~Mapping() {
    if (address != nullptr) munmap(address, size_bytes);
  }
};

File::~File() = default;

absl::StatusOr<std::unique_ptr<const File>> File::Open(const std::string& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return OpenError(path, errno);
  struct stat info {};
  if (fstat(descriptor, &info) != 0) {
    const int error = errno;
    ::close(descriptor);
    return OpenError(path, error);
  }
  if (!S_ISREG(info.st_mode) || info.st_size == 0) {
    ::close(descriptor);
    return InvalidField("model",
                        absl::StrCat(path, S_ISREG(info.st_mode) ? ": the file is empty"
                                                                 : ": is not a regular file"));
  }
  auto mapping = std::make_unique<Mapping>();
  mapping->size_bytes = static_cast<size_t>(info.st_size);
  void* address = mmap(nullptr, mapping->size_bytes, PROT_READ, MAP_PRIVATE, descriptor, 0);
  const int error = errno;
  ::close(descriptor);  // the mapping keeps the file open
  if (address == MAP_FAILED) return OpenError(path, error);
  mapping->address = address;
  std::unique_ptr<File> file(new File());
  file->path_ = path;
  file->mapping_ = std::move(mapping);
  const absl::Status parsed =
      file->ParseBytes({static_cast<const std::byte*>(address), file->mapping_->size_bytes});
  if (!parsed.ok()) {
    return WithDetails(absl::Status(parsed.code(), absl::StrCat(path, ": ", parsed.message())),
                       DetailsOf(parsed));
  }
  return std::unique_ptr<const File>(std::move(file));
}

absl::StatusOr<std::unique_ptr<const File>> File::Parse(std::span<const std::byte> bytes) {
  std::unique_ptr<File> file(new File());
  file->mapping_ = std::make_unique<Mapping>();
  KVIST_RETURN_IF_ERROR(file->ParseBytes(bytes));
  return std::unique_ptr<const File>(std::move(file));
}

absl::Status File::ParseBytes(std::span<const std::byte> bytes) {
  bytes_ = bytes;
  ByteReader reader(bytes);
  KVIST_ASSIGN_OR_RETURN(const Header header, ReadHeader(reader));
  KVIST_ASSIGN_OR_RETURN(values_, ParseMetadata(reader, header.metadata_entries));
  uint64_t alignment_bytes = kDefaultAlignmentBytes;
  if (FindValue(kAlignmentKey) != nullptr) {
    KVIST_ASSIGN_OR_RETURN(const int64_t value, GetInt(kAlignmentKey));
    alignment_bytes = static_cast<uint64_t>(value);
    if (value < 1 || alignment_bytes > kMaxAlignmentBytes || !IsPowerOfTwo(alignment_bytes)) {
      return InvalidField(kAlignmentKey,
                          absl::StrCat(value, " is no power of two up to ", kMaxAlignmentBytes));
    }
  }
  KVIST_ASSIGN_OR_RETURN(tensors_,
                         ParseTensorDirectory(reader, header.tensors, alignment_bytes, bytes));
  for (size_t i = 0; i < tensors_.size(); ++i) tensor_by_name_.emplace(tensors_[i].name, i);
  return absl::OkStatus();
}

const TensorInfo* File::FindTensor(std::string_view name) const {
  const auto found = tensor_by_name_.find(ToAbsl(name));
  return found == tensor_by_name_.end() ? nullptr : &tensors_[found->second];
}

const Value* File::FindValue(std::string_view key) const {
  const auto found = values_.find(ToAbsl(key));
  return found == values_.end() ? nullptr : &found->second;
}

absl::StatusOr<int64_t> File::GetInt(std::string_view key) const {
  const Value* value = FindValue(key);
  if (value == nullptr) return NoSuchKey(key);
  if (const int64_t* number = std::get_if<int64_t>(value)) return *number;
  const uint64_t* number = std::get_if<uint64_t>(value);
  if (number == nullptr) return WrongType(key, "an integer");
  if (*number > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return InvalidField(key, absl::StrCat(*number, " does not fit in 63 bits"));
  }
  return static_cast<int64_t>(*number);
}

absl::StatusOr<double> File::GetFloat(std::string_view key) const {
  const Value* value = FindValue(key);
  if (value == nullptr) return NoSuchKey(key);
  if (const double* number = std::get_if<double>(value)) return *number;
  if (const int64_t* number = std::get_if<int64_t>(value)) return static_cast<double>(*number);
  if (const uint64_t* number = std::get_if<uint64_t>(value)) return static_cast<double>(*number);
  return WrongType(key, "a number");
}

absl::StatusOr<bool> File::GetBool(std::string_view key) const {
  KVIST_ASSIGN_OR_RETURN(const bool* value, GetAs<bool>(FindValue(key), key, "a bool"));
  return *value;
}

absl::StatusOr<std::string> File::GetString(std::string_view key) const {
  KVIST_ASSIGN_OR_RETURN(const std::string* value,
                         GetAs<std::string>(FindValue(key), key, "a string"));
  return *value;
}

absl::StatusOr<const std::vector<std::string>*> File::GetStrings(std::string_view key) const {
  return GetAs<std::vector<std::string>>(FindValue(key), key, "an array of strings");
}

absl::StatusOr<const std::vector<float>*> File::GetFloats(std::string_view key) const {
  return GetAs<std::vector<float>>(FindValue(key), key, "an array of floats");
}

absl::StatusOr<const std::vector<int64_t>*> File::GetInts(std::string_view key) const {
  return GetAs<std::vector<int64_t>>(FindValue(key), key, "an array of integers");
}

std::string File::Fingerprint() const {
  std::call_once(mapping_->fingerprint_once, [this] { mapping_->fingerprint = Sha256Hex(bytes_); });
  return mapping_->fingerprint;
}

}  // namespace kvist::gguf
