// The file operations of a disk tier, so that tests can have a disk that is full or broken.
#ifndef KVIST_WORKER_KV_TIERS_TIER_FILE_H_
#define KVIST_WORKER_KV_TIERS_TIER_FILE_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace kvist::worker {

// A file that is read and written at places. Thread-compatible.
class TierFile {
 public:
  virtual ~TierFile() = default;
  virtual int64_t size_bytes() const = 0;
  // Cuts it, or makes it longer by zeros, with room on the disk where the file system can promise
  // that. RESOURCE_EXHAUSTED if there is no room, else UNKNOWN, with the system's words.
  virtual absl::Status Resize(int64_t bytes) = 0;
  // Fills `out` from `offset` on. UNKNOWN with the system's words, DATA_LOSS beyond the end.
  virtual absl::Status Read(int64_t offset, std::span<std::byte> out) const = 0;
  // RESOURCE_EXHAUSTED if there is no room, else UNKNOWN, with the system's words; part of it may
  // be written then.
  virtual absl::Status Write(int64_t offset, std::span<const std::byte> bytes) = 0;
};

// Opens the file, making it if need be, readable for its owner alone, and locks it against other
// processes and openers while it is open. FAILED_PRECONDITION if somebody has it, else UNKNOWN with
// the system's words.
absl::StatusOr<std::unique_ptr<TierFile>> OpenTierFile(const std::string& path);

using TierFileOpener =
    std::function<absl::StatusOr<std::unique_ptr<TierFile>>(const std::string& path)>;

}  // namespace kvist::worker

#endif  // KVIST_WORKER_KV_TIERS_TIER_FILE_H_
