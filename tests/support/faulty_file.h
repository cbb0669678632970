// A tier file on a disk that fails, or is slow, when a test says so.
#ifndef KVIST_TESTS_SUPPORT_FAULTY_FILE_H_
#define KVIST_TESTS_SUPPORT_FAULTY_FILE_H_

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "worker/kv/tiers/tier_file.h"

namespace kvist::worker {

// What a test switches while a store runs. Thread-safe, but for the function, which is set before.
struct DiskFaults {
  std::atomic<bool> full{false};        // writes and growth: RESOURCE_EXHAUSTED
  std::atomic<bool> unreadable{false};  // reads: UNKNOWN
  std::atomic<int64_t> bad_offset{-1};  // reads from there: UNKNOWN
  std::atomic<bool> torn{false};        // writes: only the first half, and OK
  std::atomic<int> writes{0};
  std::function<void()> on_read;  // before each read, on its thread
};

// Thread-compatible.
class FaultyFile final : public TierFile {
 public:
  FaultyFile(std::unique_ptr<TierFile> file, std::shared_ptr<DiskFaults> faults)
      : file_(std::move(file)), faults_(std::move(faults)) {}
  int64_t size_bytes() const override { return file_->size_bytes(); }
  absl::Status Resize(int64_t bytes) override {
    if (faults_->full && bytes > size_bytes()) return Full();
    return file_->Resize(bytes);
  }
  absl::Status Read(int64_t offset, std::span<std::byte> out) const override {
    if (faults_->on_read) faults_->on_read();
    if (faults_->unreadable || offset == faults_->bad_offset)
      return absl::UnknownError("Input/output error");
    return file_->Read(offset, out);
  }
  absl::Status Write(int64_t offset, std::span<const std::byte> bytes) override {
    ++faults_->writes;
    if (faults_->full) return Full();
    return file_->Write(offset, faults_->torn ? bytes.first(bytes.size() / 2) : bytes);
  }

 private:
  static absl::Status Full() { return absl::ResourceExhaustedError("No space left on device"); }

  const std::unique_ptr<TierFile> file_;
  const std::shared_ptr<DiskFaults> faults_;
};

inline TierFileOpener FaultyOpener(std::shared_ptr<DiskFaults> faults) {
  return [faults](const std::string& path) -> absl::StatusOr<std::unique_ptr<TierFile>> {
    auto file = OpenTierFile(path);
    if (!file.ok()) return file;
    return std::make_unique<FaultyFile>(*std::move(file), faults);
  };
}

}  // namespace kvist::worker

#endif  // KVIST_TESTS_SUPPORT_FAULTY_FILE_H_
