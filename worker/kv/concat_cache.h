// The naive KV cache, which grows by concatenation: every step copies all of it into memory that is
// one token larger. The baseline of `kvist bench kv-cache`; nothing else makes one.
#ifndef KVIST_WORKER_KV_CONCAT_CACHE_H_
#define KVIST_WORKER_KV_CONCAT_CACHE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "absl/status/status.h"
#include "worker/kernels/kernel_table.h"
#include "worker/kv/layout.h"

namespace kvist::worker {

// The KV of one sequence outside of the pools: a piece of memory for each layer, in which the pages
// of a head are contiguous, [kv head][page of 16 tokens]{ K [head_dim][16] | V [16][head_dim] }.
// Owns nothing. Thread-compatible.
struct ContiguousKv {
  std::vector<std::byte*> layers;  // by layer of the model
  int64_t pages = 0;               // of each head in each layer

  // Where the kernels find a head. `layout` is of the layer's group: its format and page size
  // count, its blocks do not.
  KvPages PagesOf(int64_t layer, int64_t kv_head, const KvLayout& layout) const;
};

// Owns the KV of one sequence. It keeps every position of every layer, those behind a window too.
// Pages of 16 tokens are the kernels' unit, so a step's new memory holds up to 15 tokens more than
// it must. Single-threaded.
class ConcatCache {
 public:
  // `groups`: all layer groups of a model, as ModelFacts::groups.
  ConcatCache(const std::vector<LayerGroup>& groups, KvFormat format);

  // Makes room for `tokens` more: takes new memory for a layer, copies the layer into it, frees the
  // old, and goes on to the next layer. RESOURCE_EXHAUSTED if there is no memory; the cache is then
  // of no more use. REQUIRES: tokens >= 1.
  absl::Status Append(int64_t tokens);

  int64_t tokens() const { return tokens_; }
  // For SequenceSlice::contiguous. Changed by Append.
  const ContiguousKv& kv() const { return kv_; }
  int64_t bytes() const { return bytes_; }
  // The most bytes held at once: those of a whole cache and of the copy of a layer.
  int64_t peak_bytes() const { return peak_bytes_; }

 private:
  struct FreeAligned {
    void operator()(std::byte* memory) const {
      ::operator delete (memory, std::align_val_t{kAlignmentBytes});
    }
  };
  using Memory = std::unique_ptr<std::byte[], FreeAligned>;
  static constexpr size_t kAlignmentBytes = 64;

  std::vector<int64_t> kv_heads_;    // by layer
  std::vector<int64_t> page_bytes_;  // by layer
  std::vector<Memory> memory_;       // by layer
  ContiguousKv kv_;
  int64_t tokens_ = 0;
  int64_t bytes_ = 0;
  int64_t peak_bytes_ = 0;
};

}  // namespace kvist::worker

#endif  // KVIST_WORKER_KV_CONCAT_CACHE_H_
