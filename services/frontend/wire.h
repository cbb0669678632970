// Between the messages of proto/kvist/v1 and the plain request. Checks nothing: that is
// validate.h's.
#ifndef KVIST_SERVICES_FRONTEND_WIRE_H_
#define KVIST_SERVICES_FRONTEND_WIRE_H_

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "proto/kvist/v1/inference.pb.h"
#include "proto/kvist/v1/types.pb.h"
#include "services/frontend/request.h"

namespace kvist::services {

InferenceRequest FromWire(const v1::GenerateRequest& request, const Principal& principal);
SamplingChoice FromWire(const v1::SamplingParams& sampling);

// Parameters as a worker gets them: defaults of the kind of prompt filled in, for a chat those of
// its model first, the seed set.
v1::SamplingParams ResolveSampling(const InferenceRequest& request,
                                   const SamplingChoice& model_defaults, uint64_t seed);
// Without stop strings; max_new_tokens cut to `room_tokens`.
v1::StopParams ResolveStop(const StopChoice& stop, int64_t room_tokens);
// What the request does not say comes from the session, field by field (but of no window there are
// no sinks), and then is paged, full, the worker's first format (which stays unnamed).
v1::CacheParams ResolveCache(const CacheChoice& cache, const v1::CacheParams& of_session);

}  // namespace kvist::services

#endif  // KVIST_SERVICES_FRONTEND_WIRE_H_
