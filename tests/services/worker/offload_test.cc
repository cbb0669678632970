// A worker with a disk tier, over gRPC and its metrics.
#include "worker/engine/offload.h"

#include <map>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/base/clock.h"
#include "common/base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/runtime/cache_params.h"
#include "tests/support/http_fetch.h"
#include "tests/support/role_fixture.h"
#include "tests/support/temp_folder.h"
#include "tests/support/tiny_model.h"

namespace kvist::services {
namespace {

using absl::StatusCode;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class WorkerOffloadTest : public ::testing::Test {
 protected:
  WorkerServerOptions Options() {
    WorkerServerOptions options;
    options.worker_id = "w0";
    options.offload_directory = folder_.path();
    options.offload_bytes = 1 << 20;
    options.server.metrics_address = "127.0.0.1:0";
    return options;
  }
  static v1::WorkerGenerateRequest Offloaded(const std::string& id) {
    v1::WorkerGenerateRequest request = MakeRequest(id, Prompt(1, 60), 30);
    request.mutable_cache()->set_offload(v1::CacheParams::DISK);
    return request;
  }
  TempFolder folder_;
};

TEST_F(WorkerOffloadTest, BlocksOutliveTheWorkerAndTheMetricsShowThem) {
  Generated first;
  {
    const TestWorker worker = StartWorker({}, Options());
    first = Generate(*worker.stub, Offloaded("a"));
    ASSERT_TRUE(first.status.ok()) << first.status;
    worker.server->Shutdown(std::chrono::milliseconds(0));
  }
  const TestWorker worker = StartWorker({}, Options());
  const Generated second = Generate(*worker.stub, Offloaded("a"));
  EXPECT_EQ(second.ids, first.ids);
  EXPECT_EQ(second.finished.usage().cached_tokens(), 48);
  // The engine's thread brings them up to date after the step in which the answer ended.
  ASSERT_TRUE(worker.server->engine().RunBetweenSteps([](worker::EngineState&) {}));
  const std::string body =
      test::HttpGet(worker.server->server().metrics_address(), "/metrics").body;
  EXPECT_THAT(body, HasSubstr("kvist_offload_restored_blocks_total{worker=\"w0\"} 3"));
  EXPECT_THAT(body, HasSubstr("kvist_offload_restores_total{worker=\"w0\"} 1"));
  EXPECT_THAT(body, HasSubstr("kvist_memory_bytes{part=\"offload\",worker=\"w0\"}"));
  EXPECT_THAT(body, HasSubstr("tier=\"disk\""));
}

TEST_F(WorkerOffloadTest, TheMetricsSumIsTheMemoryOfModelPoolsAndDisk) {
  worker::CpuBackendOptions backend = kvist::testing::TinyOptions();
  backend.kv_formats = {worker::KvFormat::kF16, worker::KvFormat::kQ8};
  WorkerServerOptions options = Options();
  const auto server =
      WorkerServer::Start(options, kvist::testing::OpenTinyModel("gemma3_a.Q4_0", backend));
  ASSERT_TRUE(server.ok()) << server.status();
  std::map<std::string, int64_t> parts;
  for (const worker::MemoryPart& part : (*server)->engine().backend().memory()) {
    parts[part.name] += part.bytes;
  }
  EXPECT_GT(parts["kv"], 0);
  std::map<std::string, int64_t> told;
  const std::string body = test::HttpGet((*server)->server().metrics_address(), "/metrics").body;
  for (const absl::string_view line : absl::StrSplit(body, '\n')) {
    if (!absl::StartsWith(line, "kvist_memory_bytes{part=\"")) continue;
    const std::vector<std::string> words = absl::StrSplit(line, absl::ByAnyChar("\" "));
    told[words[1]] = std::stoll(words.back());
  }
  const SystemClock clock;
  const TempFolder another;
  const auto disk = worker::OpenDiskStore(
      {.directory = another.path(), .bytes = options.offload_bytes, .clock = &clock},
      (*server)->engine().backend());
  ASSERT_TRUE(disk.ok()) << disk.status();
  parts["offload"] = (*disk)->memory_bytes();
  EXPECT_EQ(told, parts);
}

// A kind of cache as its series names it.
std::string SeriesOf(const v1::CacheParams& cache) {
  return absl::StrCat("kvist_cache_requests_total{allocation=\"",
                      ToAbsl(AllocationName(cache.allocation())), "\",attention=\"",
                      cache.attention().window_tokens() > 0 ? "window" : "full", "\",kv_format=\"",
                      cache.kv_format(), "\",offload=\"", ToAbsl(OffloadName(cache.offload())),
                      "\",worker=\"w0\"} ");
}

TEST_F(WorkerOffloadTest, EachKindOfCacheIsCountedByItself) {
  const TestWorker worker =
      StartWorker({.formats = {worker::KvFormat::kF16, worker::KvFormat::kQ8}}, Options());
  std::vector<std::string> counted;
  for (const auto allocation :
       {v1::CacheParams::PAGED, v1::CacheParams::STATIC, v1::CacheParams::NONE}) {
    for (const auto offload : {v1::CacheParams::OFF, v1::CacheParams::DISK}) {
      if (allocation == v1::CacheParams::NONE && offload == v1::CacheParams::DISK) continue;
      for (const char* format : {"f16", "q8"}) {
        for (const int64_t window : {int64_t{0}, int64_t{16}}) {
          v1::WorkerGenerateRequest request =
              MakeRequest(absl::StrCat("r", counted.size()), Prompt(1, 8), 2);
          v1::CacheParams& cache = *request.mutable_cache();
          cache.set_allocation(allocation);
          cache.set_offload(offload);
          cache.set_kv_format(format);
          cache.mutable_attention()->set_window_tokens(window);
          ASSERT_TRUE(Generate(*worker.stub, request).status.ok());
          counted.push_back(SeriesOf(cache));
        }
      }
    }
  }
  // What is not said is the default, and counted as such.
  ASSERT_TRUE(Generate(*worker.stub, MakeRequest("plain", Prompt(1, 8), 2)).status.ok());
  ASSERT_TRUE(worker.server->engine().RunBetweenSteps([](worker::EngineState&) {}));
  const std::string body =
      test::HttpGet(worker.server->server().metrics_address(), "/metrics").body;
  EXPECT_EQ(counted.size(), 20u);
  for (const std::string& series : counted) {
    EXPECT_THAT(body, HasSubstr(absl::StrCat(series, series == counted[0] ? 2 : 1, "\n")));
  }
  // A kind that nobody asked for stays at 0.
  v1::CacheParams host;
  host.set_allocation(v1::CacheParams::PAGED);
  host.set_offload(v1::CacheParams::HOST);
  host.set_kv_format("q8");
  EXPECT_THAT(body, HasSubstr(absl::StrCat(SeriesOf(host), "0\n")));
}

TEST_F(WorkerOffloadTest, WhatCannotBeServedIsNamed) {
  const TestWorker without = StartWorker({});
  Generated refused = Generate(*without.stub, Offloaded("a"));
  EXPECT_EQ(refused.status.code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(DetailsOf(refused.status).field, "cache.offload");
  const TestWorker worker = StartWorker({}, Options());
  v1::WorkerGenerateRequest host = Offloaded("b");
  host.mutable_cache()->set_offload(v1::CacheParams::HOST);
  refused = Generate(*worker.stub, host);
  EXPECT_THAT(std::string(refused.status.message()), HasSubstr("there is off, disk"));
}

TEST_F(WorkerOffloadTest, GetModelTellsTheDiskToThoseWhoKnowTheModelToo) {
  const TestWorker worker = StartWorker({}, Options());
  const std::string fingerprint = worker.server->engine().backend().model().fingerprint;
  for (const std::string& known : {std::string(), fingerprint}) {
    grpc::ClientContext context;
    v1::GetModelRequest request;
    request.set_known_fingerprint(known);
    v1::GetModelResponse response;
    ASSERT_TRUE(worker.stub->GetModel(&context, request, &response).ok());
    EXPECT_THAT(response.offload_tiers(), ElementsAre("disk")) << known;
  }
}

TEST_F(WorkerOffloadTest, AFolderThatCannotServeIsRefusedAtTheStart) {
  const TestWorker worker = StartWorker({}, Options());
  const auto start = [](const WorkerServerOptions& options) {
    return WorkerServer::Start(options, std::make_unique<worker::HashBackend>(
                                            worker::HashBackendOptions(),
                                            std::make_shared<worker::HashBackendControl>()))
        .status();
  };
  const absl::Status in_use = start(Options());
  EXPECT_EQ(in_use.code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(DetailsOf(in_use).field, "offload_dir");
  EXPECT_THAT(std::string(in_use.message()), HasSubstr("another worker uses it"));
  WorkerServerOptions small = Options();
  small.offload_directory += "/small";
  small.offload_bytes = 10;
  EXPECT_EQ(DetailsOf(start(small)).field, "offload_bytes");
}

}  // namespace
}  // namespace kvist::services
