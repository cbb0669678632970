// Feeds arbitrary bytes to the reader of session files, in pieces of a size that the first byte
// says; with its highest bit, the checksum is put right first. What is accepted is what the writer
// writes, byte by byte.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "common/base/check.h"
#include "worker/kv/session_file.h"

namespace kvist::worker {
namespace {

std::span<const std::byte> Bytes(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

void Run(std::string file, size_t piece, bool repair) {
  if (repair && file.size() >= kSessionFileTrailerBytes) {
    file.resize(file.size() - kSessionFileTrailerBytes);
    SessionFileChecksum checksum;
    checksum.Add(Bytes(file));
    file += SessionFileTrailer(checksum.Finish(), "fuzz");
  }
  SessionFileReader reader;
  std::string blocks;
  for (std::string_view left = file; !left.empty();) {
    const std::string_view part = left.substr(0, piece);
    if (!reader.Add(Bytes(part)).ok()) return;
    blocks.append(reinterpret_cast<const char*>(reader.blocks().data()), reader.blocks().size());
    left.remove_prefix(part.size());
  }
  if (!reader.Finish().ok()) return;
  KVIST_CHECK(reader.record().has_value() && Validate(*reader.record()).ok());
  KVIST_CHECK(reader.file_bytes() == file.size());
  KVIST_CHECK(SessionFileBytes(*reader.record()) == file.size());
  const std::string again = EncodeSessionFileHead(*reader.record()) + blocks;
  KVIST_CHECK(file.starts_with(again));
  KVIST_CHECK(!repair || reader.SealedWith("fuzz"));
}

}  // namespace
}  // namespace kvist::worker

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string file(reinterpret_cast<const char*>(data) + 1, size - 1);
  kvist::worker::Run(file, 1 + (data[0] & 0x7f), (data[0] & 0x80) != 0);
  return 0;
}
