#include "worker/tensor/arena.h"

#include <sys/mman.h>

#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/int_math.h"
#include "common/base/status.h"

namespace kvist::worker {
namespace {

constexpr size_t kHugePageBytes = size_t{2} << 20;
constexpr size_t kPageBytes = 4096;

// madvise succeeds even where an administrator switched huge pages off, so ask for the setting too.
bool SystemAllowsHugePages() {
  std::ifstream setting("/sys/kernel/mm/transparent_hugepage/enabled");
  std::string line;
  return std::getline(setting, line) && line.find("[never]") == std::string::npos;
}

}  // namespace

absl::StatusOr<Arena> Arena::Create(int64_t bytes, std::string_view purpose) {
  KVIST_CHECK(bytes >= 0);
  Arena arena;
  if (bytes == 0) return arena;
  const size_t size = static_cast<size_t>(bytes);
  const bool huge = size >= kHugePageBytes;
  const size_t alignment = huge ? kHugePageBytes : kPageBytes;
  const size_t mapped = RoundUp(size, alignment) + (huge ? kHugePageBytes : 0);
  void* mapping = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no memory for ", ToAbsl(purpose), ": the system refused ", bytes, " bytes"));
  }
  arena.mapping_ = mapping;
  arena.mapping_bytes_ = mapped;
  const uintptr_t begin = RoundUp(reinterpret_cast<uintptr_t>(mapping), uintptr_t{alignment});
  arena.data_ = reinterpret_cast<std::byte*>(begin);
  arena.size_bytes_ = bytes;
  if (huge) {
    const bool asked = madvise(arena.data_, RoundUp(size, kHugePageBytes), MADV_HUGEPAGE) == 0;
    arena.huge_pages_ = asked && SystemAllowsHugePages();
  }
  return arena;
}

Arena& Arena::operator=(Arena&& other) noexcept {
  if (this != &other) {
    Release();
    data_ = std::exchange(other.data_, nullptr);
    size_bytes_ = std::exchange(other.size_bytes_, 0);
    huge_pages_ = std::exchange(other.huge_pages_, false);
    mapping_ = std::exchange(other.mapping_, nullptr);
    mapping_bytes_ = std::exchange(other.mapping_bytes_, 0);
  }
  return *this;
}

void Arena::Release() {
  if (mapping_ != nullptr) munmap(mapping_, mapping_bytes_);
  mapping_ = nullptr;
}

}  // namespace kvist::worker
