#include "cache_manager/block_key.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>

#include <algorithm>
#include <bit>
#include <memory>

#include "common/base/check.h"

namespace kvist::cache_manager {
namespace {

constexpr size_t kSha256Bytes = 32;
// Blocks have at most 128 tokens: their hash input fits a buffer on the stack.

struct FreeContext {
  void operator()(EVP_MD_CTX* context) const { EVP_MD_CTX_free(context); }
};

// SHA-256 of one message given in pieces. One context per thread, made once: keys are computed
// inside decode steps, which allocate nothing.
class Sha256 {
 public:
  Sha256() {
    // An explicit fetch, kept: the implicit one behind EVP_sha256() costs a lock and a lookup per
    // hash.
    static const EVP_MD* const algorithm = EVP_MD_fetch(nullptr, "SHA256", nullptr);
    thread_local const std::unique_ptr<EVP_MD_CTX, FreeContext> context(EVP_MD_CTX_new());
    context_ = context.get();
    KVIST_CHECK(algorithm != nullptr && context_ != nullptr, "OpenSSL has no SHA-256");
    KVIST_CHECK(EVP_DigestInit_ex(context_, algorithm, nullptr) == 1);
  }

  void Add(const void* bytes, size_t count) {
    KVIST_CHECK(EVP_DigestUpdate(context_, bytes, count) == 1);
  }
  // The length goes first: ("ab", "c") and ("a", "bc") are different messages.
  void AddField(std::string_view field) {
    AddNumber(field.size());
    Add(field.data(), field.size());
  }
  void AddNumber(uint64_t value) {
    uint8_t bytes[8];
    for (int i = 0; i < 8; ++i) bytes[i] = static_cast<uint8_t>(value >> (8 * i));
    Add(bytes, sizeof(bytes));
  }
  BlockKey Finish() {
    std::array<uint8_t, kSha256Bytes> digest;
    KVIST_CHECK(EVP_DigestFinal_ex(context_, digest.data(), nullptr) == 1);
    BlockKey key;
    std::copy_n(digest.begin(), key.bytes.size(), key.bytes.begin());
    return key;
  }

 private:
  EVP_MD_CTX* context_;
};

}  // namespace

std::string BlockKey::Hex() const {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string hex;
  hex.reserve(2 * bytes.size());
  for (const uint8_t byte : bytes) {
    hex.push_back(kDigits[byte >> 4]);
    hex.push_back(kDigits[byte & 15]);
  }
  return hex;
}

BlockKey RootKey(const KeyScope& scope) {
  Sha256 hash;
  hash.AddField("kvist block root 1");
  hash.AddField(scope.model_fingerprint);
  hash.AddField(scope.attention);
  hash.AddNumber(static_cast<uint64_t>(scope.block_tokens));
  hash.AddField(scope.tenant_salt);
  return hash.Finish();
}

BlockKey ChildKey(const BlockKey& parent, std::span<const int32_t> tokens) {
  KVIST_CHECK(tokens.size() <= size_t{kMaxBlockTokens}, "a block has at most 128 tokens");
  Sha256 hash;
  hash.Add(parent.bytes.data(), parent.bytes.size());
  if constexpr (std::endian::native == std::endian::little) {
    hash.Add(tokens.data(), tokens.size_bytes());
  } else {
    std::array<uint8_t, 4 * kMaxBlockTokens> bytes;
    for (size_t i = 0; i < 4 * tokens.size(); ++i) {
      bytes[i] = static_cast<uint8_t>(static_cast<uint32_t>(tokens[i / 4]) >> (8 * (i % 4)));
    }
    hash.Add(bytes.data(), 4 * tokens.size());
  }
  return hash.Finish();
}

std::vector<BlockKey> KeysOf(const BlockKey& root, std::span<const int32_t> tokens,
                             int32_t block_tokens) {
  KVIST_CHECK(block_tokens > 0);
  const size_t size = static_cast<size_t>(block_tokens);
  std::vector<BlockKey> keys;
  keys.reserve(tokens.size() / size);
  BlockKey parent = root;
  for (size_t first = 0; first + size <= tokens.size(); first += size) {
    parent = ChildKey(parent, tokens.subspan(first, size));
    keys.push_back(parent);
  }
  return keys;
}

std::string TenantSalt(std::string_view cluster_secret, std::string_view tenant_id) {
  // HMAC() reads a null key as "the key of the last call".
  const char* const secret = cluster_secret.empty() ? "" : cluster_secret.data();
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  KVIST_CHECK(HMAC(EVP_sha256(), secret, static_cast<int>(cluster_secret.size()),
                   reinterpret_cast<const unsigned char*>(tenant_id.data()), tenant_id.size(),
                   digest, &size) != nullptr);
  return std::string(reinterpret_cast<const char*>(digest), size);
}

}  // namespace kvist::cache_manager
