#include "worker/backend/kv_pools.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "cache_manager/block_key.h"
#include "cache_manager/limits.h"
#include "common/base/check.h"
#include "common/base/int_math.h"
#include "common/base/status.h"

namespace kvist::worker {
namespace {

// What the manager takes of one pool: a worker with more would never be welcomed.
constexpr int64_t kMaxPoolBlocks = cache_manager::kMaxBlocksPerPool;
constexpr int64_t kMaxDefaultKvBlocks = 65536;

// Tokens of `group` that one sequence needs at its longest.
int64_t LeastTokens(const LayerGroup& group, const KvPoolsOptions& options) {
  if (group.window == 0) return options.context_tokens;
  return std::min(options.context_tokens,
                  group.window + options.max_batch_tokens + options.block_tokens);
}

}  // namespace

absl::Status CheckKvPools(const std::vector<LayerGroup>& groups, const KvPoolsOptions& options) {
  const int32_t tokens = options.block_tokens;
  if (!cache_manager::IsBlockSize(tokens)) {
    return InvalidField("block_tokens", absl::StrCat("must be 16, 32, 64 or 128, is ", tokens));
  }
  if (options.formats.empty()) return InvalidField("kv_formats", "none given");
  for (size_t i = 0; i < options.formats.size(); ++i) {
    if (std::count(options.formats.begin(), options.formats.end(), options.formats[i]) > 1) {
      return InvalidField(
          "kv_formats", absl::StrCat(ToAbsl(KvFormatName(options.formats[i])), " is given twice"));
    }
    for (const LayerGroup& group : groups) {
      KVIST_RETURN_IF_ERROR(CheckHeadDim(options.formats[i], group.head_dim));
    }
  }
  if (options.blocks_per_pool < 0 || options.blocks_per_pool > kMaxPoolBlocks) {
    return InvalidField("blocks_per_pool", absl::StrCat("must be 0 .. ", kMaxPoolBlocks, ", is ",
                                                        options.blocks_per_pool));
  }
  if (options.kv_bytes < 0) return InvalidField("kv_bytes", "is negative");
  return absl::OkStatus();
}

absl::StatusOr<std::vector<PoolSpec>> PlanKvPools(const std::vector<LayerGroup>& groups,
                                                  const KvPoolsOptions& options) {
  KVIST_RETURN_IF_ERROR(CheckKvPools(groups, options));
  std::vector<PoolSpec> specs;
  int64_t least_bytes = 0;
  int64_t bytes_of_block_in_each = 0;
  for (const KvFormat format : options.formats) {
    for (size_t group = 0; group < groups.size(); ++group) {
      const KvLayout layout(groups[group], format, options.block_tokens);
      const int64_t blocks =
          CeilDiv<int64_t>(LeastTokens(groups[group], options), options.block_tokens);
      specs.push_back({.group = static_cast<int32_t>(group),
                       .format = format,
                       .num_blocks = static_cast<int32_t>(blocks),
                       .block_bytes = layout.block_bytes(),
                       .block_tokens = options.block_tokens});
      least_bytes += blocks * layout.block_bytes();
      bytes_of_block_in_each += layout.block_bytes();
    }
  }
  if (options.blocks_per_pool > 0) {
    for (PoolSpec& spec : specs) spec.num_blocks = options.blocks_per_pool;
    return specs;
  }
  if (options.kv_bytes < least_bytes) {
    return InvalidField("kv_bytes",
                        absl::StrCat(options.kv_bytes, " bytes do not hold one sequence of ",
                                     options.context_tokens, " tokens in each format; at least ",
                                     least_bytes, " are needed, or a smaller context"));
  }
  const int64_t more = (options.kv_bytes - least_bytes) / bytes_of_block_in_each;
  for (PoolSpec& spec : specs) {
    spec.num_blocks = static_cast<int32_t>(std::min(kMaxPoolBlocks, spec.num_blocks + more));
  }
  return specs;
}

int64_t KvBytesOf(const std::vector<LayerGroup>& groups, const KvPoolsOptions& options,
                  int64_t blocks) {
  int64_t bytes = 0;
  for (const KvFormat format : options.formats) {
    for (const LayerGroup& group : groups) {
      bytes += blocks * KvLayout(group, format, options.block_tokens).block_bytes();
    }
  }
  return bytes;
}

int64_t DefaultKvBytes(const std::vector<LayerGroup>& groups, const KvPoolsOptions& options,
                       int64_t available_bytes) {
  return std::min(available_bytes / 4, KvBytesOf(groups, options, kMaxDefaultKvBlocks));
}

absl::StatusOr<KvPools> KvPools::Create(const std::vector<LayerGroup>& groups,
                                        std::vector<PoolSpec> specs) {
  KvPools pools;
  for (const PoolSpec& spec : specs) {
    pools.layouts_.emplace_back(groups[static_cast<size_t>(spec.group)], spec.format,
                                spec.block_tokens);
    KVIST_ASSIGN_OR_RETURN(Arena arena,
                           Arena::Create(spec.num_blocks * spec.block_bytes, "a KV pool"));
    pools.arenas_.push_back(std::move(arena));
  }
  pools.specs_ = std::move(specs);
  return pools;
}

int32_t KvPools::Find(int32_t group, KvFormat format) const {
  for (size_t pool = 0; pool < specs_.size(); ++pool) {
    if (specs_[pool].group == group && specs_[pool].format == format)
      return static_cast<int32_t>(pool);
  }
  return -1;
}

int64_t KvPools::taken_bytes() const {
  int64_t bytes = 0;
  for (const Arena& arena : arenas_) bytes += arena.taken_bytes();
  return bytes;
}

std::span<std::byte> KvPools::Block(int32_t pool, int32_t block) const {
  const PoolSpec& spec = specs_[static_cast<size_t>(pool)];
  KVIST_CHECK(block >= 0 && block < spec.num_blocks, "block index");
  return {arena(pool) + block * spec.block_bytes, static_cast<size_t>(spec.block_bytes)};
}

}  // namespace kvist::worker
