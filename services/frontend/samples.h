// The answers to one prompt: a relay each, the first one's worker for all, one way back to the
// client.
#ifndef KVIST_SERVICES_FRONTEND_SAMPLES_H_
#define KVIST_SERVICES_FRONTEND_SAMPLES_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "services/frontend/client_stream.h"
#include "services/frontend/in_flight.h"
#include "services/frontend/relay.h"
#include "services/frontend/response_sink.h"

namespace kvist::services {

// How one answer ended.
struct SampleOutcome {
  RelayResult result;
  std::vector<int32_t> kept_ids;  // ResponseSink's
  int64_t text_bytes = 0;
};

struct SamplesRequest {
  // Sample 0's. Another one's request id ends in its number, its sample index is the first one's
  // and that number, and it is a fork of sample 0.
  RelayRequest relay;
  std::vector<std::string> session_ids;  // who holds the blocks, by sample: their number
  // The answer can be resumed: if its workers are lost, held-back text stays so.
  bool resumable = false;
  std::function<std::unique_ptr<WorkerChooser>()> make_chooser;
  // The sink of a sample, which writes to that stream.
  std::function<std::unique_ptr<ResponseSink>(int32_t sample, ClientStream* client)> make_sink;
};

// Of the frontend.
struct SamplesContext {
  const RelayOptions& relay;
  InFlight& in_flight;
  const Clock& clock;
};

// Runs all samples to their ends, by sample. Blocks. Of several, each has a thread, or where there
// is none ends as RESOURCE_EXHAUSTED. The others begin when a worker has taken sample 0, at it; if
// none does, they end as it does. From then on they are on their own: one that fails, or whose
// worker is lost, leaves the others as they are. Of several, each one's end is a SampleFinished.
std::vector<SampleOutcome> RunSamples(const SamplesRequest& request, const SamplesContext& context,
                                      ClientStream& client);

}  // namespace kvist::services

#endif  // KVIST_SERVICES_FRONTEND_SAMPLES_H_
