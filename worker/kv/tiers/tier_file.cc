#include "worker/kv/tiers/tier_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace kvist::worker {
namespace {

absl::Status SystemError(const std::string& path, int error) {
  const std::string message = absl::StrCat(path, ": ", std::strerror(error));
  const bool full = error == ENOSPC || error == EDQUOT || error == EFBIG;
  return full ? absl::ResourceExhaustedError(message) : absl::UnknownError(message);
}

class PosixTierFile final : public TierFile {
 public:
  PosixTierFile(std::string path, int descriptor)
      : path_(std::move(path)), descriptor_(descriptor) {}
  ~PosixTierFile() override { close(descriptor_); }

  int64_t size_bytes() const override {
    struct stat facts;
    return fstat(descriptor_, &facts) == 0 ? facts.st_size : 0;
  }

  absl::Status Resize(int64_t bytes) override {
    if (bytes > size_bytes()) {
      if (fallocate(descriptor_, 0, 0, bytes) == 0) return absl::OkStatus();
      if (errno != EOPNOTSUPP) return SystemError(path_, errno);
    }
    return ftruncate(descriptor_, bytes) == 0 ? absl::OkStatus() : SystemError(path_, errno);
  }

  absl::Status Read(int64_t offset, std::span<std::byte> out) const override {
    while (!out.empty()) {
      const ssize_t count = pread(descriptor_, out.data(), out.size(), offset);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) return SystemError(path_, errno);
      if (count == 0) return absl::DataLossError(absl::StrCat(path_, ": it ends too early"));
      out = out.subspan(static_cast<size_t>(count));
      offset += count;
    }
    return absl::OkStatus();
  }

  absl::Status Write(int64_t offset, std::span<const std::byte> bytes) override {
    while (!bytes.empty()) {
      const ssize_t count = pwrite(descriptor_, bytes.data(), bytes.size(), offset);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) return SystemError(path_, errno);
      bytes = bytes.subspan(static_cast<size_t>(count));
      offset += count;
    }
    return absl::OkStatus();
  }

 private:
  const std::string path_;
  const int descriptor_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<TierFile>> OpenTierFile(const std::string& path) {
  const int descriptor = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, S_IRUSR | S_IWUSR);
  if (descriptor < 0) return SystemError(path, errno);
  auto file = std::make_unique<PosixTierFile>(path, descriptor);
  if (flock(descriptor, LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return SystemError(path, errno);
    return absl::FailedPreconditionError(absl::StrCat(path, ": another worker uses it"));
  }
  return file;
}

}  // namespace kvist::worker
