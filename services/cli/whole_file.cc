#include "services/cli/whole_file.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace kvist::services {
namespace {

absl::Status Failed(const std::string& path, const char* what, int error) {
  const std::string message = absl::StrCat(path, ": ", what, ": ", std::strerror(error));
  switch (error) {
    case ENOENT:
    case ENOTDIR:
      return absl::NotFoundError(message);
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::PermissionDeniedError(message);
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      return absl::ResourceExhaustedError(message);
    default:
      return absl::UnavailableError(message);
  }
}

std::string FolderOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

}  // namespace

WholeFile::WholeFile(std::string path, std::string temporary, int fd)
    : path_(std::move(path)), temporary_(std::move(temporary)), fd_(fd) {}

absl::StatusOr<std::unique_ptr<WholeFile>> WholeFile::Create(const std::string& path) {
  struct stat found {};
  const bool exists = stat(path.c_str(), &found) == 0;
  if (path.empty() || path.back() == '/' || (exists && !S_ISREG(found.st_mode))) {
    return absl::InvalidArgumentError(absl::StrCat("\"", path, "\" is no file's name"));
  }
  std::string temporary = absl::StrCat(path, ".part-XXXXXX");
  const int fd = mkostemp(temporary.data(), O_CLOEXEC);
  if (fd < 0) return Failed(path, "cannot be written", errno);
  return std::unique_ptr<WholeFile>(new WholeFile(path, std::move(temporary), fd));
}

WholeFile::~WholeFile() {
  if (fd_ < 0) return;
  close(fd_);
  unlink(temporary_.c_str());
}

absl::Status WholeFile::Write(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = write(fd_, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return Failed(path_, "cannot be written", errno);
    bytes.remove_prefix(static_cast<size_t>(written));
  }
  return absl::OkStatus();
}

absl::Status WholeFile::Commit() {
  if (fsync(fd_) != 0) return Failed(path_, "cannot be synced to disk", errno);
  if (std::rename(temporary_.c_str(), path_.c_str()) != 0) {
    return Failed(path_, "cannot be replaced", errno);
  }
  const int closed = close(std::exchange(fd_, -1));
  // The name is on disk once its folder is; where a folder cannot be synced the file is whole all
  // the same.
  const int folder = open(FolderOf(path_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder >= 0) {
    fsync(folder);
    close(folder);
  }
  return closed == 0 ? absl::OkStatus() : Failed(path_, "cannot be closed", errno);
}

}  // namespace kvist::services
