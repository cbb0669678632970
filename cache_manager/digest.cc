#include "cache_manager/digest.h"

#include <cstring>
#include <string_view>

#include "common/base/int_math.h"

namespace kvist::cache_manager {
namespace {

// FNV-1a: processes of any build agree on it, which std::hash does not promise.
uint64_t HashText(std::string_view text) {
  uint64_t hash = 0xcbf29ce484222325ULL;
  for (const char c : text) {
    hash ^= static_cast<uint8_t>(c);
    hash *= 0x100000001b3ULL;
  }
  return Mix64(hash);
}

uint64_t LittleEndian64(const uint8_t* bytes) {
  uint64_t value = 0;
  for (int i = 7; i >= 0; --i) value = (value << 8) | bytes[i];
  return value;
}

// Order matters: Combine(Combine(s, a), b) differs from Combine(Combine(s, b), a).
uint64_t Combine(uint64_t state, uint64_t value) {
  return Mix64(state + 0x9e3779b97f4a7c15ULL + Mix64(value));
}

uint64_t Combine(uint64_t state, const BlockKey& key) {
  return Combine(Combine(state, LittleEndian64(key.bytes.data())),
                 LittleEndian64(key.bytes.data() + 8));
}

}  // namespace

uint64_t PlacementHash(const BlockKey& key, Tier tier) {
  return Combine(static_cast<uint64_t>(tier) + 1, key);
}

uint64_t HoldingHash(const SessionId& session, const HoldingState& state) {
  if (state.chain_blocks == 0 && state.partial_blocks == 0 && state.reserved_blocks == 0) return 0;
  uint64_t hash = Combine(HashText(session.value()), state.chain_blocks);
  hash = Combine(hash, state.last_key);
  hash = Combine(hash, state.partial_blocks);
  return Combine(hash, state.reserved_blocks);
}

}  // namespace kvist::cache_manager
