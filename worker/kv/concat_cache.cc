#include "worker/kv/concat_cache.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/int_math.h"

namespace kvist::worker {
namespace {

constexpr int32_t kOnlyBlock = 0;

}  // namespace

KvPages ContiguousKv::PagesOf(int64_t layer, int64_t kv_head, const KvLayout& layout) const {
  return {.format = layout.format(),
          .arena = layers[static_cast<size_t>(layer)],
          .block_table = &kOnlyBlock,
          .block_bytes = 0,
          .pages_per_block = pages,
          .offset = kv_head * pages * layout.page_bytes(),
          .page_stride = layout.page_bytes()};
}

ConcatCache::ConcatCache(const std::vector<LayerGroup>& groups, KvFormat format) {
  size_t layers = 0;
  for (const LayerGroup& group : groups) layers += group.layers.size();
  kv_heads_.resize(layers);
  page_bytes_.resize(layers);
  memory_.resize(layers);
  kv_.layers.resize(layers, nullptr);
  for (const LayerGroup& group : groups) {
    const KvLayout layout(group, format, kPageTokens);
    for (const int32_t layer : group.layers) {
      KVIST_CHECK(layer >= 0 && static_cast<size_t>(layer) < layers, "a layer in two groups");
      kv_heads_[static_cast<size_t>(layer)] = group.kv_heads;
      page_bytes_[static_cast<size_t>(layer)] = layout.page_bytes();
    }
  }
}

absl::Status ConcatCache::Append(int64_t tokens) {
  KVIST_CHECK(tokens >= 1);
  const int64_t pages = CeilDiv<int64_t>(tokens_ + tokens, kPageTokens);
  for (size_t layer = 0; layer < memory_.size(); ++layer) {
    const int64_t head_bytes = pages * page_bytes_[layer];
    const int64_t old_head_bytes = kv_.pages * page_bytes_[layer];
    const int64_t new_bytes = kv_heads_[layer] * head_bytes;
    Memory memory(static_cast<std::byte*>(::operator new (
        static_cast<size_t>(new_bytes), std::align_val_t{kAlignmentBytes}, std::nothrow)));
    if (memory == nullptr) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "no memory for a concatenated KV cache: the system refused ", new_bytes, " bytes"));
    }
    peak_bytes_ = std::max(peak_bytes_, bytes_ + new_bytes);
    for (int64_t head = 0; head < kv_heads_[layer] && old_head_bytes > 0; ++head) {
      std::memcpy(memory.get() + head * head_bytes, memory_[layer].get() + head * old_head_bytes,
                  static_cast<size_t>(old_head_bytes));
    }
    bytes_ += new_bytes - kv_heads_[layer] * old_head_bytes;
    memory_[layer] = std::move(memory);
    kv_.layers[layer] = memory_[layer].get();
  }
  kv_.pages = pages;
  tokens_ += tokens;
  return absl::OkStatus();
}

}  // namespace kvist::worker
