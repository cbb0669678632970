#include "worker/kv/layout.h"

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
                                   kQ4Unit, ", this model's have ", head_dim));
}

KvLayout::KvLayout(const LayerGroup& group, KvFormat format, int32_t block_tokens)
    : format_(format), block_tokens_(block_tokens), kv_heads_(group.kv_heads) {
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

}  // namespace kvist::worker
