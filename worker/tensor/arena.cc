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
  const size_t taken = RoundUp(size, alignment);
  const size_t mapped = taken + alignment - kPageBytes;
  void* mapping = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no memory for ", ToAbsl(purpose), ": the system refused ", bytes, " bytes"));
  }
  // What lies around the aligned part goes back at once.
  const uintptr_t start = reinterpret_cast<uintptr_t>(mapping);
  const uintptr_t begin = RoundUp(start, uintptr_t{alignment});
  const size_t before = begin - start;
  const size_t after = mapped - before - taken;
  if (before > 0) munmap(mapping, before);
  if (after > 0) munmap(reinterpret_cast<void*>(begin + taken), after);
  arena.data_ = reinterpret_cast<std::byte*>(begin);
  arena.size_bytes_ = bytes;
  arena.taken_bytes_ = static_cast<int64_t>(taken);
  if (huge) {
    const bool asked = madvise(arena.data_, taken, MADV_HUGEPAGE) == 0;
    arena.huge_pages_ = asked && SystemAllowsHugePages();
  }
  return arena;
}

Arena& Arena::operator=(Arena&& other) noexcept {
  if (this != &other) {
    Release();
    data_ = std::exchange(other.data_, nullptr);
    size_bytes_ = std::exchange(other.size_bytes_, 0);
    taken_bytes_ = std::exchange(other.taken_bytes_, 0);
    huge_pages_ = std::exchange(other.huge_pages_, false);
  }
  return *this;
}

void Arena::Release() {
  if (data_ != nullptr) munmap(data_, static_cast<size_t>(taken_bytes_));
  data_ = nullptr;
}

}  // namespace kvist::worker
