// One call of Generate or Resume from its first check to its last message ("Life of a request" in
// the README).
#ifndef KVIST_SERVICES_FRONTEND_GENERATION_H_
#define KVIST_SERVICES_FRONTEND_GENERATION_H_

#include "absl/status/status.h"
#include "common/base/clock.h"
#include "proto/kvist/v1/inference.pb.h"
#include "services/frontend/client_stream.h"
#include "services/frontend/frontend_state.h"
#include "services/frontend/request.h"

namespace kvist::services {

// Blocks until the call is over. The status is how it ends, after the Finished message where there
// was one; errors as ARCHITECTURE.md, section 7.
absl::Status RunGenerate(FrontendState& state, const v1::GenerateRequest& request,
                         const Principal& principal, MonotonicTime deadline, ClientStream& client);

// Goes on with a session's turn from a token index: an open turn is run again from its record
// (output is deterministic), the last ended one is told from the store. NOT_FOUND: no such turn;
// ABORTED: this frontend streams it to somebody now; OUT_OF_RANGE: the index is negative, or beyond
// the end of an ended turn (an open one that ends before it sends its last message alone);
// UNAVAILABLE (kNoManager): nobody can say how the turn stands. Else as RunGenerate.
absl::Status RunResume(FrontendState& state, const v1::ResumeRequest& request,
                       const Principal& principal, MonotonicTime deadline, ClientStream& client);

}  // namespace kvist::services

#endif  // KVIST_SERVICES_FRONTEND_GENERATION_H_
