// What kvist doctor says would fit is what a server with the same flags has.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/services/cli/cli_server.h"
#include "tests/support/model_files.h"

namespace kvist::services {
namespace {

using nlohmann::json;

struct Fit {
  int64_t tokens = std::numeric_limits<int64_t>::max();
  int64_t sessions = std::numeric_limits<int64_t>::max();

  friend bool operator==(const Fit&, const Fit&) = default;
  friend void PrintTo(const Fit& fit, std::ostream* out) {
    *out << fit.tokens << " tokens, " << fit.sessions << " sessions";
  }
};

// Of sequences in the pools that a worker reports. A windowed layer group holds a window's blocks
// and one more of each sequence, and the end of every one.
Fit FitInto(const json& pools, int64_t session_tokens) {
  Fit fit;
  for (const json& pool : pools) {
    const int64_t block = pool["block_tokens"];
    const int64_t window = pool["window_tokens"];
    const int64_t total = pool["total"];
    int64_t of_session = (session_tokens + block - 1) / block;
    if (window > 0) of_session = std::min(of_session, (window + block - 1) / block + 1);
    fit.sessions = std::min(fit.sessions, total / of_session);
    if (window == 0) fit.tokens = std::min(fit.tokens, total * block);
  }
  return fit;
}

void ExpectDoctorToSayWhatAServerHas(const std::string& model, const std::string& format,
                                     std::vector<std::string> flags) {
  SCOPED_TRACE(model + " " + format);
  testing::CliServer server("doctor-fit");
  flags.insert(flags.end(),
               {"--model", testing::GoldenPath("tiny/" + model + ".gguf"), "--kv-formats", format});
  server.Start(flags);
  const json pools = server.Json({"blocks"})["workers"][0]["pools"];
  server.Stop();
  flags.insert(flags.begin(), {"doctor", "--threads", "1"});
  const json doctor = server.Json(flags)["model"];
  ASSERT_FALSE(pools.empty());
  const auto said = std::find_if(doctor["formats"].begin(), doctor["formats"].end(),
                                 [&](const json& fit) { return fit["format"] == format; });
  ASSERT_NE(said, doctor["formats"].end()) << doctor;
  EXPECT_EQ((Fit{.tokens = (*said)["tokens"], .sessions = (*said)["sessions"]}),
            FitInto(pools, doctor["session_tokens"]));
  int64_t bytes = 0;
  for (const json& pool : pools) {
    bytes += pool["total"].get<int64_t>() * pool["bytes_per_block"].get<int64_t>();
  }
  EXPECT_LE(bytes, (*said)["kv_memory_bytes"].get<int64_t>());
}

TEST(DoctorFitTest, TokensAndSessionsAreThoseOfAStartedServersPools) {
  ExpectDoctorToSayWhatAServerHas("llama_a.Q4_1", "f16", {"--kv-memory", "8MB"});
  ExpectDoctorToSayWhatAServerHas("gemma3_a.Q4_0", "q8",
                                  {"--kv-memory", "5MB", "--block-tokens", "32", "--context", "200",
                                   "--max-batch-tokens", "48"});
}

}  // namespace
}  // namespace kvist::services
