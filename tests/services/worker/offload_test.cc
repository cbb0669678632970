// A worker with a disk tier, over gRPC and its metrics.
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/runtime/cache_params.h"
#include "tests/support/http_fetch.h"
#include "tests/support/role_fixture.h"
#include "tests/support/temp_folder.h"

namespace kvist::services {
namespace {

using absl::StatusCode;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Of the lines of a scrape: what is told of each part of the memory.
std::map<std::string, double> MemoryOf(const std::string& body) {
  std::map<std::string, double> parts;
  const std::string mark = "kvist_memory_bytes{part=\"";
  for (size_t at = body.find(mark); at != std::string::npos; at = body.find(mark, at + 1)) {
    const size_t name = at + mark.size();
    parts[body.substr(name, body.find('"', name) - name)] =
        std::stod(body.substr(body.find("} ", name) + 2));
  }
  return parts;
}

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

TEST_F(WorkerOffloadTest, TheScrapesPartsOfMemoryAreTheEnginesSum) {
  WorkerServerOptions options = Options();
  options.engine.speculative_tokens = 4;
  const TestWorker worker = StartWorker({}, options);
  const std::map<std::string, double> told =
      MemoryOf(test::HttpGet(worker.server->server().metrics_address(), "/metrics").body);
  std::map<std::string, double> taken;
  for (const worker::MemoryPart& part : worker.server->engine().memory()) {
    EXPECT_GT(part.bytes, 0) << part.name;
    EXPECT_TRUE(taken.emplace(part.name, static_cast<double>(part.bytes)).second) << part.name;
  }
  EXPECT_EQ(told, taken);
  for (const char* part : {"kv", "pools", "drafts", "offload", "tiers"}) {
    EXPECT_TRUE(told.contains(part)) << part;
  }
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
