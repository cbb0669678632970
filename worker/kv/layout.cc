#include "worker/kv/layout.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status.h"

namespace kvist::worker {
namespace {

struct FormatRow {
  KvFormat format;
  std::string_view name;
};

constexpr FormatRow kFormats[] = {
    {KvFormat::kF16, "f16"}, {KvFormat::kF32, "f32"}, {KvFormat::kBF16, "bf16"},
    {KvFormat::kQ8, "q8"},   {KvFormat::kQ4, "q4"},
};

const FormatRow& RowOf(KvFormat format) {
  for (const FormatRow& row : kFormats) {
    if (row.format == format) return row;
  }
  CheckFailed(__FILE__, __LINE__, "known KV format", "");
}

// Rows of kPageTokens elements, one per token: zeroes those of tokens `slot` and later.
void ClearColumns(std::span<std::byte> rows, size_t element_bytes, size_t slot) {
  const size_t row = kPageTokens * element_bytes;
  for (size_t at = 0; at < rows.size(); at += row) {
    std::fill_n(rows.begin() + static_cast<std::ptrdiff_t>(at + slot * element_bytes),
                row - slot * element_bytes, std::byte{0});
  }
}

size_t ElementBytes(KvFormat format) {
  if (format == KvFormat::kF32) return 4;
  return format == KvFormat::kF16 || format == KvFormat::kBF16 ? 2 : 1;
}

// kv_page.h: keys, values and scales of one page.
void ClearPage(KvFormat format, int64_t head_dim, size_t slot, std::span<std::byte> page) {
  const KvPageLayout layout = KvPageLayoutOf(format, head_dim);
  const size_t values = static_cast<size_t>(layout.values);
  const size_t scales = static_cast<size_t>(layout.key_scales);
  ClearColumns(page.first(values), ElementBytes(format), slot);
  const auto value_rows = page.subspan(values, scales - values);
  const auto cleared = value_rows.subspan(value_rows.size() / kPageTokens * slot);
  std::fill(cleared.begin(), cleared.end(), std::byte{0});
  ClearColumns(page.subspan(scales), format == KvFormat::kQ8 ? 4 : 2, slot);
}

}  // namespace

absl::StatusOr<KvFormat> KvFormatFromName(std::string_view name) {
  std::string names;
  for (const FormatRow& row : kFormats) {
    if (row.name == name) return row.format;
    absl::StrAppend(&names, names.empty() ? "" : ", ", ToAbsl(row.name));
  }
  return InvalidField("kv_format",
                      absl::StrCat("unknown format \"", ToAbsl(name), "\"; known: ", names));
}

std::vector<KvFormat> KnownKvFormats() {
  std::vector<KvFormat> formats;
  for (const FormatRow& row : kFormats) formats.push_back(row.format);
  return formats;
}

std::string_view KvFormatName(KvFormat format) { return RowOf(format).name; }

absl::Status CheckHeadDim(KvFormat format, int64_t head_dim) {
  if (HoldsHeadDim(format, head_dim)) return absl::OkStatus();
  return InvalidField("kv_formats",
                      absl::StrCat(ToAbsl(KvFormatName(format)), " needs heads of a multiple of ",
                                   kQ4Group, ", this model's have ", head_dim));
}

KvLayout::KvLayout(const LayerGroup& group, KvFormat format, int32_t block_tokens)
    : format_(format),
      block_tokens_(block_tokens),
      kv_heads_(group.kv_heads),
      head_dim_(group.head_dim) {
  KVIST_CHECK(block_tokens == 16 || block_tokens == 32 || block_tokens == 64 ||
              block_tokens == 128);
  KVIST_CHECK(HoldsHeadDim(format, group.head_dim));
  page_bytes_ = KvPageLayoutOf(format, group.head_dim).bytes;
  block_bytes_ =
      static_cast<int64_t>(group.layers.size()) * kv_heads_ * pages_per_block() * page_bytes_;
}

int64_t KvLayout::HeadOffset(int64_t layer_in_group, int64_t kv_head) const {
  return (layer_in_group * kv_heads_ + kv_head) * pages_per_block() * page_bytes_;
}

void KvLayout::ClearFrom(int32_t first, std::span<std::byte> block) const {
  KVIST_CHECK(static_cast<int64_t>(block.size()) == block_bytes_);
  KVIST_CHECK(first >= 0 && first <= block_tokens_);
  for (int64_t at = 0, page = 0; at < block_bytes_; at += page_bytes_, ++page) {
    const int64_t kept = first - page % pages_per_block() * kPageTokens;
    if (kept >= kPageTokens) continue;
    ClearPage(format_, head_dim_, static_cast<size_t>(std::max<int64_t>(0, kept)),
              block.subspan(static_cast<size_t>(at), static_cast<size_t>(page_bytes_)));
  }
}

}  // namespace kvist::worker
