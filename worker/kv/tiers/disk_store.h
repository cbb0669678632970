// Blocks in files: a slab of slots for each pool, and the thread that writes and reads them.
#ifndef KVIST_WORKER_KV_TIERS_DISK_STORE_H_
#define KVIST_WORKER_KV_TIERS_DISK_STORE_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cache_manager/tier_index.h"
#include "common/base/clock.h"
#include "common/base/mutex.h"
#include "worker/kv/block_file.h"
#include "worker/kv/tiers/tier_file.h"
#include "worker/tensor/arena.h"

namespace kvist::worker {

// Blocks on their way between memory and disk. While the disk has some, the engine fills or empties
// others between two steps; a step of 20 ms and a disk of 500 MB/s need a few MB.
inline constexpr int32_t kStagingBuffers = 16;

struct DiskStoreOptions {
  std::string directory;  // made if need be; of one worker alone
  int64_t bytes = 0;      // of all files together
  TierFileOpener open = &OpenTierFile;
  const Clock* clock = nullptr;  // outlives the store; Thread-safe
};

// What the disk is to do with one slot.
struct DiskJob {
  enum class Kind : uint8_t { kRead, kWrite, kWipe };
  Kind kind = Kind::kRead;
  size_t pool = 0;
  int32_t slot = 0;
  int32_t buffer = -1;   // holds or gets the record; none to wipe
  BlockFileEntry entry;  // what is written; what was read
  uint64_t tag = 0;      // the caller's
};

// A job that ended. A read is OK only if the record is whole and right: DATA_LOSS or
// INVALID_ARGUMENT if it is not, else as TierFile.
struct DiskDone {
  DiskJob job;
  absl::Status status;
  double seconds = 0;  // in the disk's thread, checksums included
};

// One file "pool-N.slab" for each pool: a header that says whose blocks these are, then slots of
// one record each (worker/kv/block_file.h), the same number in every file. Nothing is forced to the
// disk: after a loss of power a record may be torn, which its checksums show. Jobs run in their
// order, one at a time, on one thread, so a slot is never read while it is written. Memory: the
// staging buffers and a record of zeros, taken at Open. Thread-safe, but for the buffers, which are
// their owner's, and what says so.
class DiskStore {
 public:
  // `scopes`: one for each pool. INVALID_ARGUMENT naming "offload_dir" or "offload_bytes": no such
  // directory can be had or written, it is in use, it has a file of another model or of something
  // else; the budget holds no slot for each pool, or the disk has not the room. A file of another
  // numerics id or layout of this model is emptied, with a line in the log: its blocks are of no
  // use to this worker, and an upgrade should not need a hand. Files of pools that this worker does
  // not have are removed, with a line in the log.
  static absl::StatusOr<std::unique_ptr<DiskStore>> Open(const DiskStoreOptions& options,
                                                         const std::vector<BlockFileScope>& scopes);
  ~DiskStore();  // after the job under way; those that wait are dropped

  size_t num_pools() const { return slabs_.size(); }
  int32_t slots() const { return slots_; }  // of each pool
  const BlockFile& records(size_t pool) const { return slabs_[pool].records; }
  // The blocks that the files had at Open, by their headers, in order of writing.
  const std::vector<cache_manager::TierIndex::Found>& found(size_t pool) const {
    return slabs_[pool].found;
  }
  // Memory taken.
  int64_t memory_bytes() const { return memory_.taken_bytes(); }

  // Where a buffer has a record of the pool. REQUIRES: 0 <= buffer < kStagingBuffers.
  std::span<std::byte> Record(int32_t buffer, size_t pool) const;

  // Queues a job; its buffer is the store's until the job is done. The queue holds at most a job
  // for each buffer and slot.
  void Submit(DiskJob job) ABSL_LOCKS_EXCLUDED(mutex_);
  // Appends the jobs that ended to `done`. Takes no memory if there are none.
  void TakeDone(std::vector<DiskDone>* done) ABSL_LOCKS_EXCLUDED(mutex_);
  // Waits until a job's end can be taken; false: none is under way, or `deadline` passed.
  bool WaitForDone(std::optional<std::chrono::steady_clock::time_point> deadline)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // Called on the disk's thread after each job, nullptr: no more from the return of this on.
  void SetOnDone(std::function<void()> on_done) ABSL_LOCKS_EXCLUDED(on_done_mutex_);

 private:
  struct Slab {
    explicit Slab(const BlockFileScope& scope) : records(scope) {}
    BlockFile records;
    std::unique_ptr<TierFile> file;
    int64_t slot_bytes = 0;
    std::vector<cache_manager::TierIndex::Found> found;
  };

  DiskStore(const DiskStoreOptions& options, std::vector<Slab> slabs, int32_t slots, Arena memory);
  static absl::Status OpenSlab(const std::string& path, const DiskStoreOptions& options,
                               int32_t slots, Slab& slab);
  // Reads the headers of all slots; returns the highest sequence among them. One that cannot be
  // read is as one that holds nothing.
  static uint64_t Scan(int32_t slots, Slab& slab);
  void Run();
  absl::Status Execute(DiskJob& job);

  const Clock* const clock_;
  std::vector<Slab> slabs_;  // the files are the thread's
  const int32_t slots_;
  int64_t buffer_bytes_ = 0;
  Arena memory_;                // buffers, then zeros
  uint64_t next_sequence_ = 1;  // the thread's

  Mutex mutex_;
  CondVar changed_;
  std::deque<DiskJob> queue_ ABSL_GUARDED_BY(mutex_);
  std::vector<DiskDone> done_ ABSL_GUARDED_BY(mutex_);
  bool working_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  Mutex on_done_mutex_;
  std::function<void()> on_done_ ABSL_GUARDED_BY(on_done_mutex_);
  std::thread thread_;
};

}  // namespace kvist::worker

#endif  // KVIST_WORKER_KV_TIERS_DISK_STORE_H_
