// A session's blocks from one engine core to another, as a snapshot takes them.
#ifndef KVIST_TESTS_SUPPORT_SESSION_MOVE_H_
#define KVIST_TESTS_SUPPORT_SESSION_MOVE_H_

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "worker/engine/engine_core.h"

namespace kvist::worker {

// Blocks outside of any pool.
struct MovedBlocks {
  int64_t tokens = 0;
  std::vector<BlockPlace> places;
  std::vector<std::vector<std::byte>> bytes;
};

inline size_t BlockBytesOf(const EngineCore& core, KvFormat format, int32_t group) {
  for (const PoolSpec& pool : core.backend().pools()) {
    if (pool.format == format && pool.group == group) return static_cast<size_t>(pool.block_bytes);
  }
  return 0;
}

inline MovedBlocks TakeOut(EngineCore& core, const SessionHistory& history) {
  MovedBlocks moved;
  SessionCopies& copies = core.state().copies;
  const auto out = copies.BeginExport(history);
  EXPECT_TRUE(out.ok()) << out.status();
  if (!out.ok()) return moved;
  EXPECT_TRUE(core.CheckInvariants().ok()) << core.CheckInvariants();
  moved.tokens = out->tokens;
  moved.places = out->places;
  for (size_t i = 0; i < out->places.size(); ++i) {
    moved.bytes.emplace_back(BlockBytesOf(core, out->format, out->places[i].group));
    copies.Read(out->id, i, moved.bytes.back());
  }
  copies.End(out->id);
  return moved;
}

inline SessionImport ImportOf(const EngineCore& core, const SessionHistory& history,
                              const MovedBlocks& moved) {
  SessionImport import{.history = history, .tokens = moved.tokens};
  import.blocks.resize(core.backend().model().groups.size());
  for (const BlockPlace& place : moved.places) ++import.blocks[static_cast<size_t>(place.group)];
  return import;
}

// Returns how much of the history is found then.
inline int64_t PutIn(EngineCore& core, const SessionHistory& history, const MovedBlocks& moved) {
  SessionCopies& copies = core.state().copies;
  const auto id = copies.BeginImport(ImportOf(core, history, moved));
  EXPECT_TRUE(id.ok()) << id.status();
  if (!id.ok()) return 0;
  for (size_t i = 0; i < moved.places.size(); ++i) {
    const absl::Status written = copies.Write(*id, moved.places[i], moved.bytes[i]);
    EXPECT_TRUE(written.ok()) << written;
  }
  EXPECT_TRUE(core.CheckInvariants().ok()) << core.CheckInvariants();
  for (bool done = false; !done;) {
    const auto committed = copies.Commit(*id, 2);
    EXPECT_TRUE(committed.ok()) << committed.status();
    done = committed.value_or(true);
  }
  const int64_t found = copies.Settle(*id);
  copies.End(*id);
  EXPECT_TRUE(core.CheckInvariants().ok()) << core.CheckInvariants();
  return found;
}

inline SessionHistory HistoryOf(const GenerateRequest& request,
                                const std::vector<int32_t>& answer) {
  SessionHistory history{.session = request.session,
                         .tenant = request.tenant,
                         .tenant_salt = request.tenant_salt,
                         .cache = request.cache,
                         .tokens = request.prompt_ids};
  history.tokens.insert(history.tokens.end(), answer.begin(), answer.end());
  return history;
}

}  // namespace kvist::worker

#endif  // KVIST_TESTS_SUPPORT_SESSION_MOVE_H_
