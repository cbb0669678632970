#include "worker/kv/tiers/disk_store.h"

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "cache_manager/limits.h"
#include "common/base/check.h"
#include "common/base/int_math.h"
#include "common/base/logging.h"
#include "common/base/status.h"

namespace kvist::worker {
namespace {

using cache_manager::TierIndex;

constexpr int64_t kSlabHeaderBytes = 4096;  // slots begin at a page
// Slots begin where a vector does.
constexpr int64_t kSlotAlignment = 64;

absl::Status InDirectory(const absl::Status& status) {
  const bool full = absl::IsResourceExhausted(status);
  return InvalidField(full ? "offload_bytes" : "offload_dir", std::string(status.message()));
}

// OK: the file holds blocks of this scope. NOT_FOUND: it was never begun, or as the
// message says is of no use.
absl::Status CheckOwner(const std::string& path, const TierFile& file, const BlockFile& records) {
  if (file.size_bytes() == 0) return absl::NotFoundError("");
  std::vector<std::byte> header(kBlockHeaderBytes);
  const absl::Status read = file.Read(0, header);
  if (!read.ok() && !absl::IsDataLoss(read)) return InDirectory(read);
  if (std::all_of(header.begin(), header.end(), [](std::byte b) { return b == std::byte{0}; })) {
    return absl::NotFoundError("");
  }
  const absl::Status owner = records.DecodeScope(header);
  if (owner.ok()) return owner;
  const std::string field = DetailsOf(owner).field;
  if (field == "magic") {
    return InvalidField("offload_dir", absl::StrCat(path, " is no file of blocks"));
  }
  if (field == "model") {
    return InvalidField("offload_dir",
                        absl::StrCat(path,
                                     " has blocks of another model: delete it, or give this "
                                     "worker a directory of its own"));
  }
  return absl::NotFoundError(owner.message());
}

// N of "pool-N.slab", without leading zeros; -1: another name.
int64_t NumberOf(const std::string& name) {
  int64_t number = -1;
  if (!name.starts_with("pool-") || !name.ends_with(".slab") ||
      !absl::SimpleAtoi(name.substr(5, name.size() - 10), &number)) {
    return -1;
  }
  return name == absl::StrCat("pool-", number, ".slab") ? number : -1;
}

// Files of pools that a former run of the worker had: their room is not in the budget.
absl::Status RemoveOldSlabs(const DiskStoreOptions& options, const BlockFile& records,
                            size_t num_pools) {
  std::error_code error;
  std::vector<std::filesystem::path> old;
  for (auto entry = std::filesystem::directory_iterator(options.directory, error);
       !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    const std::filesystem::path& path = entry->path();
    if (NumberOf(path.filename()) >= static_cast<int64_t>(num_pools)) old.push_back(path);
  }
  if (error) {
    return InvalidField("offload_dir", absl::StrCat(options.directory, ": ", error.message()));
  }
  for (const std::filesystem::path& path : old) {
    auto file = options.open(path);
    if (!file.ok()) return InDirectory(file.status());
    const absl::Status owner = CheckOwner(path, **file, records);
    if (!owner.ok() && !absl::IsNotFound(owner)) return owner;
    if (std::filesystem::remove(path, error)) {
      LogWarning("{} is removed: this worker has no such pool", path.string());
    }
    if (error) {
      return InvalidField("offload_dir", absl::StrCat(path.string(), ": ", error.message()));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status DiskStore::OpenSlab(const std::string& path, const DiskStoreOptions& options,
                                 int32_t slots, Slab& slab) {
  auto file = options.open(path);
  if (!file.ok()) return InDirectory(file.status());
  slab.file = *std::move(file);
  const absl::Status owner = CheckOwner(path, *slab.file, slab.records);
  const bool fresh = absl::IsNotFound(owner);
  if (fresh && !owner.message().empty()) {
    LogWarning("{} is begun anew: {}", path, std::string(owner.message()));
  }
  if (!owner.ok() && !fresh) return owner;
  // Old records may not stay where another layout has its slots.
  absl::Status status = fresh ? slab.file->Resize(0) : absl::OkStatus();
  if (status.ok()) status = slab.file->Resize(kSlabHeaderBytes + slots * slab.slot_bytes);
  // Also where it is right already: a disk that cannot be written is found now.
  std::vector<std::byte> header(kBlockHeaderBytes);
  slab.records.EncodeScope(header);
  if (status.ok()) status = slab.file->Write(0, header);
  return status.ok() ? status : InDirectory(status);
}

uint64_t DiskStore::Scan(int32_t slots, Slab& slab) {
  struct Written {
    uint64_t sequence;
    TierIndex::Found found;
  };
  std::vector<Written> written;
  absl::Status trouble;
  int32_t unreadable = 0;
  std::vector<std::byte> header(kBlockHeaderBytes);
  for (int32_t slot = 0; slot < slots; ++slot) {
    const absl::Status read = slab.file->Read(kSlabHeaderBytes + slot * slab.slot_bytes, header);
    if (!read.ok()) {
      trouble = read;
      ++unreadable;
      continue;
    }
    const auto entry = slab.records.DecodeHeader(header);
    if (!entry.ok() || entry->key.empty()) continue;
    written.push_back({entry->sequence, {slot, {entry->key, entry->parent}}});
  }
  // A disk with a bad place is of use beside it; if the slot is needed, the write says more.
  if (unreadable > 0) {
    LogWarning("{} of {} slots cannot be read: {}", unreadable, slots,
               std::string(trouble.message()));
  }
  std::sort(written.begin(), written.end(),
            [](const Written& a, const Written& b) { return a.sequence < b.sequence; });
  for (Written& w : written) slab.found.push_back(w.found);
  return written.empty() ? 0 : written.back().sequence;
}

absl::StatusOr<std::unique_ptr<DiskStore>> DiskStore::Open(
    const DiskStoreOptions& options, const std::vector<BlockFileScope>& scopes) {
  KVIST_CHECK(!scopes.empty() && options.clock != nullptr);
  std::vector<Slab> slabs;
  int64_t all_bytes = 0, largest = 0;
  for (const BlockFileScope& scope : scopes) {
    Slab& slab = slabs.emplace_back(scope);
    slab.slot_bytes =
        RoundUp<int64_t>(static_cast<int64_t>(slab.records.record_bytes()), kSlotAlignment);
    all_bytes += slab.slot_bytes;
    largest = std::max(largest, slab.slot_bytes);
  }
  const int64_t headers = kSlabHeaderBytes * static_cast<int64_t>(slabs.size());
  const int64_t slots =
      std::min<int64_t>((options.bytes - headers) / all_bytes, cache_manager::kMaxBlocksPerPool);
  if (options.bytes < headers + all_bytes) {
    return InvalidField("offload_bytes",
                        absl::StrCat(options.bytes,
                                     " bytes hold no block of each pool; the least "
                                     "are ",
                                     headers + all_bytes));
  }
  std::error_code error;
  std::filesystem::create_directories(options.directory, error);
  if (error) {
    return InvalidField("offload_dir", absl::StrCat(options.directory, ": ", error.message()));
  }
  // First, for their room may be needed.
  KVIST_RETURN_IF_ERROR(RemoveOldSlabs(options, slabs[0].records, slabs.size()));
  uint64_t newest = 0;
  for (size_t i = 0; i < slabs.size(); ++i) {
    const std::string path = absl::StrCat(options.directory, "/pool-", i, ".slab");
    KVIST_RETURN_IF_ERROR(OpenSlab(path, options, static_cast<int32_t>(slots), slabs[i]));
    newest = std::max(newest, Scan(static_cast<int32_t>(slots), slabs[i]));
  }
  KVIST_ASSIGN_OR_RETURN(Arena memory,
                         Arena::Create((kStagingBuffers + 1) * largest, "offload buffers"));
  auto store = std::unique_ptr<DiskStore>(
      new DiskStore(options, std::move(slabs), static_cast<int32_t>(slots), std::move(memory)));
  // A forged file may say the last sequence there is: the order is then lost, nothing else.
  store->next_sequence_ = newest + 1;
  store->thread_ = std::thread([raw = store.get()] { raw->Run(); });
  return store;
}

DiskStore::DiskStore(const DiskStoreOptions& options, std::vector<Slab> slabs, int32_t slots,
                     Arena memory)
    : clock_(options.clock),
      slabs_(std::move(slabs)),
      slots_(slots),
      buffer_bytes_(memory.size_bytes() / (kStagingBuffers + 1)),
      memory_(std::move(memory)) {}

DiskStore::~DiskStore() {
  {
    MutexLock lock(mutex_);
    stopped_ = true;
    changed_.NotifyAll();
  }
  if (thread_.joinable()) thread_.join();
}

std::span<std::byte> DiskStore::Record(int32_t buffer, size_t pool) const {
  KVIST_CHECK(buffer >= 0 && buffer <= kStagingBuffers);
  return {memory_.data() + buffer * buffer_bytes_, slabs_[pool].records.record_bytes()};
}

void DiskStore::Submit(DiskJob job) {
  MutexLock lock(mutex_);
  queue_.push_back(std::move(job));
  changed_.NotifyAll();
}

void DiskStore::TakeDone(std::vector<DiskDone>* done) {
  MutexLock lock(mutex_);
  for (DiskDone& ended : done_) done->push_back(std::move(ended));
  done_.clear();
}

bool DiskStore::WaitForDone(std::optional<std::chrono::steady_clock::time_point> deadline) {
  MutexLock lock(mutex_);
  while (done_.empty()) {
    if (queue_.empty() && !working_) return false;
    if (!deadline.has_value()) {
      changed_.Wait(mutex_);
    } else if (!changed_.WaitUntil(mutex_, *deadline)) {
      return !done_.empty();
    }
  }
  return true;
}

void DiskStore::SetOnDone(std::function<void()> on_done) {
  MutexLock lock(on_done_mutex_);
  on_done_ = std::move(on_done);
}

void DiskStore::Run() {
  while (true) {
    DiskDone ended;
    {
      MutexLock lock(mutex_);
      while (queue_.empty() && !stopped_) changed_.Wait(mutex_);
      if (stopped_) return;
      ended.job = std::move(queue_.front());
      queue_.pop_front();
      working_ = true;
    }
    const MonotonicTime start = clock_->Now();
    ended.status = Execute(ended.job);
    ended.seconds = SecondsBetween(start, clock_->Now());
    {
      MutexLock lock(mutex_);
      working_ = false;
      done_.push_back(std::move(ended));
      changed_.NotifyAll();
    }
    MutexLock lock(on_done_mutex_);
    if (on_done_) on_done_();
  }
}

absl::Status DiskStore::Execute(DiskJob& job) {
  Slab& slab = slabs_[job.pool];
  const int64_t offset = kSlabHeaderBytes + job.slot * slab.slot_bytes;
  if (job.kind == DiskJob::Kind::kWipe) {
    return slab.file->Write(offset, Record(kStagingBuffers, job.pool));
  }
  const std::span<std::byte> record = Record(job.buffer, job.pool);
  if (job.kind == DiskJob::Kind::kWrite) {
    job.entry.sequence = next_sequence_++;
    slab.records.Encode(job.entry, record);
    return slab.file->Write(offset, record);
  }
  KVIST_RETURN_IF_ERROR(slab.file->Read(offset, record));
  KVIST_ASSIGN_OR_RETURN(job.entry, slab.records.Decode(record));
  return absl::OkStatus();
}

}  // namespace kvist::worker
