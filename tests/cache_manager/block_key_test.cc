#include "cache_manager/block_key.h"

#include <set>

#include "gtest/gtest.h"

namespace kvist::cache_manager {
namespace {

std::string Hex(const std::string& bytes) {
  std::string hex;
  for (const char c : bytes) {
    hex.push_back("0123456789abcdef"[(static_cast<uint8_t>(c) >> 4) & 15]);
    hex.push_back("0123456789abcdef"[c & 15]);
  }
  return hex;
}

KeyScope Scope() {
  return {
      .model_fingerprint = "model", .attention = "full", .block_tokens = 4, .tenant_salt = "salt"};
}

// Computed apart: hashlib.sha256(bytes(16) + struct.pack("<4i", 1, 2, 3, -1)).hexdigest()[:32].
TEST(BlockKeyTest, ChildKeyIsSha256OfParentAndLittleEndianTokens) {
  EXPECT_EQ(ChildKey(BlockKey{}, std::vector<int32_t>{1, 2, 3, -1}).Hex(),
            "e3c636277f39377408b6498f6ad7212d");
}

TEST(BlockKeyTest, RootKeyIsSha256OfLengthPrefixedFields) {
  EXPECT_EQ(RootKey(Scope()).Hex(), "f5605c7493ae0364e8197b9907a5e279");
}

// RFC 4231, test case 2.
TEST(BlockKeyTest, TenantSaltIsHmacSha256) {
  EXPECT_EQ(Hex(TenantSalt("Jefe", "what do ya want for nothing?")),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
  EXPECT_EQ(TenantSalt("", "").size(), 32u);
}

TEST(BlockKeyTest, EveryFieldOfTheScopeSeparates) {
  std::set<BlockKey> roots = {RootKey(Scope())};
  KeyScope scope = Scope();
  scope.model_fingerprint = "model2";
  roots.insert(RootKey(scope));
  scope = Scope();
  scope.attention = "window=512";
  roots.insert(RootKey(scope));
  scope = Scope();
  scope.block_tokens = 16;
  roots.insert(RootKey(scope));
  scope = Scope();
  scope.tenant_salt = "pepper";
  roots.insert(RootKey(scope));
  EXPECT_EQ(roots.size(), 5u);
}

TEST(BlockKeyTest, MovingBytesBetweenFieldsChangesTheRoot) {
  KeyScope scope = Scope();
  scope.model_fingerprint = "modelf";
  scope.attention = "ull";
  EXPECT_NE(RootKey(scope), RootKey(Scope()));
}

TEST(BlockKeyTest, KeysNameFullBlocksOnlyAndDependOnAllTokensBefore) {
  const BlockKey root = RootKey(Scope());
  const std::vector<int32_t> tokens = {1, 2, 3, 4, 5, 6, 7, 8, 9};
  const std::vector<BlockKey> keys = KeysOf(root, tokens, 4);
  ASSERT_EQ(keys.size(), 2u);
  EXPECT_EQ(keys[0], ChildKey(root, std::span(tokens).first(4)));
  EXPECT_EQ(keys[1], ChildKey(keys[0], std::span(tokens).subspan(4, 4)));
  std::vector<int32_t> changed = tokens;
  changed[0] = 0;
  EXPECT_NE(KeysOf(root, changed, 4)[1], keys[1]);
  EXPECT_TRUE(KeysOf(root, std::span(tokens).first(3), 4).empty());
}

TEST(BlockKeyTest, LargestBlockHasAKey) {
  EXPECT_FALSE(ChildKey(BlockKey{}, std::vector<int32_t>(128, 7)).empty());
}

}  // namespace
}  // namespace kvist::cache_manager
