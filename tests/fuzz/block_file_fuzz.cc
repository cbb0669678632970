// Feeds arbitrary bytes to the reader of block records. The first byte says whether the header's
// and the block's checksums are put right first, so that what lies behind them is reached too.
#include <openssl/evp.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "common/base/check.h"
#include "worker/kv/block_file.h"

namespace {

void Sign(std::span<std::byte> bytes, size_t from, size_t size, size_t to) {
  if (bytes.size() < from + size || bytes.size() < to + 16) return;
  unsigned char digest[EVP_MAX_MD_SIZE];
  KVIST_CHECK(EVP_Digest(bytes.data() + from, size, digest, nullptr, EVP_sha256(), nullptr) == 1);
  std::transform(digest, digest + 16, bytes.begin() + static_cast<ptrdiff_t>(to),
                 [](unsigned char c) { return std::byte{c}; });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  static const kvist::worker::BlockFile file(
      {.model_fingerprint = "fuzz", .numerics_id = "fuzz", .block_bytes = 64});
  const auto* const begin = reinterpret_cast<const std::byte*>(data + 1);
  std::vector<std::byte> record(begin, begin + size - 1);
  if ((data[0] & 1) != 0 && record.size() == file.record_bytes()) {
    Sign(record, kvist::worker::kBlockHeaderBytes, file.block_bytes(), 112);
  }
  if ((data[0] & 2) != 0) Sign(record, 0, 688, 688);
  (void)file.DecodeHeader(record);
  const auto entry = file.Decode(record);
  if (!entry.ok()) return 0;
  std::vector<std::byte> again = record;
  file.Encode(*entry, again);
  KVIST_CHECK(again == record);
  return 0;
}
