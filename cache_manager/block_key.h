// Names of full blocks, alike in every process: a block's key is a cryptographic hash over its
// tokens and all tokens before it, under a root that separates what must never be mixed.
#ifndef KVIST_CACHE_MANAGER_BLOCK_KEY_H_
#define KVIST_CACHE_MANAGER_BLOCK_KEY_H_

#include <array>
#include <compare>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace kvist::cache_manager {

// Tokens of a block: 16, 32, 64 or 128 (ARCHITECTURE.md 3). Whoever takes a size from a file, an
// option or a peer asks here first.
inline constexpr int32_t kMaxBlockTokens = 128;
constexpr bool IsBlockSize(int64_t tokens) {
  return tokens == 16 || tokens == 32 || tokens == 64 || tokens == kMaxBlockTokens;
}

// First 16 bytes of SHA-256(parent key, tokens as little-endian u32). The zero key names nothing.
struct BlockKey {
  std::array<uint8_t, 16> bytes{};

  friend bool operator==(const BlockKey&, const BlockKey&) = default;
  friend auto operator<=>(const BlockKey&, const BlockKey&) = default;
  bool empty() const { return *this == BlockKey{}; }
  // The hash is uniform already: its first 64 bits.
  uint64_t Prefix64() const {
    uint64_t value;
    std::memcpy(&value, bytes.data(), sizeof(value));
    return value;
  }
  template <typename H>
  friend H AbslHashValue(H h, const BlockKey& key) {
    return H::combine(std::move(h), key.Prefix64());
  }
  std::string Hex() const;
};

// What separates caches that must never share a block. Layer group and KV format are not in it:
// each pool has its own map.
struct KeyScope {
  std::string model_fingerprint;
  // Canonical text of the attention semantics: AttentionText, rope overrides.
  std::string attention;
  int32_t block_tokens = 16;
  std::string tenant_salt;  // HMAC-SHA-256(cluster secret, tenant id); never from a request
};

// The parent of a sequence's first block.
BlockKey RootKey(const KeyScope& scope);
// The key of a full block. REQUIRES: tokens.size() == the scope's block_tokens.
BlockKey ChildKey(const BlockKey& parent, std::span<const int32_t> tokens);
// Keys of all full blocks of `tokens`, in order; the last, partial block has none.
std::vector<BlockKey> KeysOf(const BlockKey& root, std::span<const int32_t> tokens,
                             int32_t block_tokens);
// HMAC-SHA-256(secret, tenant id).
std::string TenantSalt(std::string_view cluster_secret, std::string_view tenant_id);

}  // namespace kvist::cache_manager

#endif  // KVIST_CACHE_MANAGER_BLOCK_KEY_H_
