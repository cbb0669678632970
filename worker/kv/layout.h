// All byte arithmetic of KV blocks. A block holds `block_tokens` tokens of one layer group in one
// format; all layers of the group are contiguous in it, so that moving a block is one copy:
//   [layer of the group][kv head][page of 16 tokens], a page as worker/kernels/kv_page.h says,
// its scales included
#ifndef KVIST_WORKER_KV_LAYOUT_H_
#define KVIST_WORKER_KV_LAYOUT_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/kernels/kernel_table.h"

namespace kvist::worker {

// "f16", "f32", "bf16", "q8", "q4". INVALID_ARGUMENT listing the names.
absl::StatusOr<KvFormat> KvFormatFromName(std::string_view name);
std::string_view KvFormatName(KvFormat format);
// INVALID_ARGUMENT naming the format and the head size if the format cannot hold such heads.
absl::Status CheckHeadDim(KvFormat format, int64_t head_dim);
// All formats, in the order of their names above.
std::vector<KvFormat> KnownKvFormats();

// Layers with equal attention span and head geometry: they share block tables.
struct LayerGroup {
  std::vector<int32_t> layers;  // ascending
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t window = 0;  // positions a query sees, itself included; 0: all
};

// One pool's geometry: a layer group in a format with a block size. Thread-compatible.
class KvLayout {
 public:
  // REQUIRES: block_tokens is 16, 32, 64 or 128; CheckHeadDim(format, group.head_dim) is OK.
  KvLayout(const LayerGroup& group, KvFormat format, int32_t block_tokens);

  int64_t block_bytes() const { return block_bytes_; }
  int64_t page_bytes() const { return page_bytes_; }
  int32_t block_tokens() const { return block_tokens_; }
  int64_t pages_per_block() const { return block_tokens_ / kPageTokens; }
  KvFormat format() const { return format_; }
  // Offset inside a block of page 0 of (the group's i-th layer, kv head).
  int64_t HeadOffset(int64_t layer_in_group, int64_t kv_head) const;
  int64_t BytesPerToken() const { return block_bytes_ / block_tokens_; }
  // Zeroes positions `first` and later in a block's bytes. REQUIRES: block.size() == block_bytes();
  // 0 <= first <= block_tokens().
  void ClearFrom(int32_t first, std::span<std::byte> block) const;

 private:
  KvFormat format_;
  int32_t block_tokens_;
  int64_t kv_heads_;
  int64_t head_dim_;
  int64_t page_bytes_;
  int64_t block_bytes_;
};

}  // namespace kvist::worker

#endif  // KVIST_WORKER_KV_LAYOUT_H_
