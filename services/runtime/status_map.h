// The one map between absl::Status and gRPC: codes and messages as they are, ErrorDetails as
// trailing metadata
// ("kvist-reason", "kvist-field", "kvist-retry-after-ms", "kvist-resume-index").
#ifndef KVIST_SERVICES_RUNTIME_STATUS_MAP_H_
#define KVIST_SERVICES_RUNTIME_STATUS_MAP_H_

#include <grpcpp/grpcpp.h>

#include "absl/status/status.h"

namespace kvist::services {

// What a server returns for `status`; the details go into `context`'s trailing metadata. INTERNAL
// and UNKNOWN keep only an opaque id for the client; the message goes to the log under that id.
grpc::Status ToGrpc(const absl::Status& status, grpc::ServerContextBase* context);
// What a client got, details included.
absl::Status FromGrpc(const grpc::Status& status, const grpc::ClientContext& context);

}  // namespace kvist::services

#endif  // KVIST_SERVICES_RUNTIME_STATUS_MAP_H_
