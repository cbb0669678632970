// Files that appear whole or not at all.
#ifndef KVIST_SERVICES_CLI_WHOLE_FILE_H_
#define KVIST_SERVICES_CLI_WHOLE_FILE_H_

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace kvist::services {

// Written under a name of its own beside `path` and readable by its owner alone; Commit syncs it
// and renames it over whatever has the name. Errors name the path: INVALID_ARGUMENT (a folder),
// NOT_FOUND, PERMISSION_DENIED, RESOURCE_EXHAUSTED (no space), else UNAVAILABLE. Single-threaded.
class WholeFile {
 public:
  static absl::StatusOr<std::unique_ptr<WholeFile>> Create(const std::string& path);
  ~WholeFile();  // removes it unless it was committed
  WholeFile(const WholeFile&) = delete;
  WholeFile& operator=(const WholeFile&) = delete;

  absl::Status Write(std::string_view bytes);
  // REQUIRES: not called before.
  absl::Status Commit();

 private:
  WholeFile(std::string path, std::string temporary, int fd);

  const std::string path_;
  const std::string temporary_;
  int fd_;
};

}  // namespace kvist::services

#endif  // KVIST_SERVICES_CLI_WHOLE_FILE_H_
