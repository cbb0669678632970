// Sessions for requests that name none: a request that goes on where an earlier one ended gets the
// earlier one's session, so that memory, routing and eviction see conversations even where clients
// resend the whole text.
#ifndef KVIST_SERVICES_FRONTEND_IMPLICIT_SESSIONS_H_
#define KVIST_SERVICES_FRONTEND_IMPLICIT_SESSIONS_H_

#include <cstddef>
#include <cstdint>
#include <list>
#include <span>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "cache_manager/block_key.h"
#include "common/base/ids.h"

namespace kvist::services {

// Continues, for each request, the longest known chain of blocks that the prompt begins with, if it
// lies beyond what the tenant's sessions have in common (a block that two chains hold, as a system
// prompt's), and no other request is at it now. Block keys are salted by tenant, so one table
// serves all. Pure; names come from a counter. Single-threaded.
class ImplicitSessions {
 public:
  // Beyond `max_sessions` the one longest unused and not in use is forgotten; beyond `max_blocks`
  // kept keys, too.
  struct Limits {
    size_t max_sessions = 16384;
    size_t max_blocks = size_t{1} << 20;
  };
  // Names are `prefix` and a number; a random prefix keeps two frontends apart.
  ImplicitSessions(std::string prefix, const Limits& limits);

  // The session of a request whose prompt has these full blocks; it is in use until End.
  SessionId Begin(std::span<const cache_manager::BlockKey> prompt_keys);
  // The request has ended, with its output the chain is `keys` (which begin with the prompt's).
  // No-op if unknown.
  void End(const SessionId& session, std::span<const cache_manager::BlockKey> keys);

  size_t size() const { return sessions_.size(); }
  size_t blocks() const { return blocks_.size(); }
  absl::Status CheckInvariants() const;

 private:
  struct Session {
    std::vector<cache_manager::BlockKey> chain;
    size_t prompt_blocks =
        0;  // of the last request; a retold answer may differ in its tokens, its prompt may not
    bool in_use = false;
    std::list<uint64_t>::iterator age;
  };
  // Who holds a block: how many sessions, and the sum of their numbers (so a single holder's
  // number).
  struct Holders {
    uint64_t number_sum = 0;
    uint32_t count = 0;
  };
  Session* FindContinued(std::span<const cache_manager::BlockKey> keys, uint64_t* number);
  void SetChain(uint64_t number, Session* session, std::span<const cache_manager::BlockKey> keys);
  void Forget(uint64_t number);
  void MakeRoom();

  const std::string prefix_;
  const Limits limits_;
  uint64_t next_number_ = 0;
  std::list<uint64_t> oldest_first_;
  absl::flat_hash_map<uint64_t, Session> sessions_;  // by number
  absl::flat_hash_map<cache_manager::BlockKey, Holders> blocks_;
  size_t held_blocks_ = 0;  // entries of all chains together
};

}  // namespace kvist::services

#endif  // KVIST_SERVICES_FRONTEND_IMPLICIT_SESSIONS_H_
