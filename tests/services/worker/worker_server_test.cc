#include "services/worker/worker_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <functional>
#include <future>
#include <limits>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "services/runtime/metrics.h"
#include "services/worker/limits.h"
#include "tests/support/http_fetch.h"
#include "tests/support/role_fixture.h"

namespace kvist::services {
namespace {

using absl::StatusCode;
using ::testing::HasSubstr;

text::Vocabulary SmallVocabulary() {
  text::Vocabulary vocabulary;
  for (int i = 0; i < 64; ++i) vocabulary.pieces.push_back(absl::StrCat("p", i));
  vocabulary.kinds.assign(64, text::TokenKind::kNormal);
  vocabulary.merges = {"a b"};
  vocabulary.bos_id = 1;
  vocabulary.add_bos = true;
  vocabulary.stop_ids = {61, 62};
  vocabulary.chat_template = "{{ x }}";
  return vocabulary;
}

struct BadRequest {
  const char* what;
  std::function<void(v1::WorkerGenerateRequest&)> spoil;
  StatusCode code;
  const char* field;
};

constexpr StatusCode kInvalid = StatusCode::kInvalidArgument;
constexpr StatusCode kRange = StatusCode::kOutOfRange;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<BadRequest> BadIdsAndLengths() {
  return {
      {"no request id", [](auto& r) { r.clear_request_id(); }, kInvalid, "request_id"},
      {"request id of 65", [](auto& r) { r.set_request_id(std::string(65, 'x')); }, kInvalid,
       "request_id"},
      {"request id with a slash", [](auto& r) { r.set_request_id("a/b"); }, kInvalid, "request_id"},
      {"session id of 65", [](auto& r) { r.set_session_id(std::string(65, 'x')); }, kInvalid,
       "session_id"},
      {"tenant with a space", [](auto& r) { r.set_tenant_id("a b"); }, kInvalid, "tenant_id"},
      {"salt of 31", [](auto& r) { r.set_tenant_salt(std::string(31, 's')); }, kInvalid,
       "tenant_salt"},
      {"salt of 33", [](auto& r) { r.set_tenant_salt(std::string(33, 's')); }, kInvalid,
       "tenant_salt"},
      {"empty prompt", [](auto& r) { r.clear_prompt_ids(); }, kInvalid, "prompt_ids"},
      {"id below 0", [](auto& r) { r.add_prompt_ids(-1); }, kInvalid, "prompt_ids"},
      {"id = vocabulary", [](auto& r) { r.add_prompt_ids(64); }, kInvalid, "prompt_ids"},
      {"prompt of the context",
       [](auto& r) {
         while (r.prompt_ids_size() < 128) r.add_prompt_ids(1);
       },
       kRange, "prompt_ids"},
      {"prompt beyond the context",
       [](auto& r) {
         while (r.prompt_ids_size() < 129) r.add_prompt_ids(1);
       },
       kRange, "prompt_ids"},
      {"generated ids beyond the context",
       [](auto& r) {
         while (r.generated_ids_size() < 129) r.add_generated_ids(1);
       },
       kRange, "generated_ids"},
      {"generated id below 0", [](auto& r) { r.add_generated_ids(-5); }, kInvalid, "generated_ids"},
  };
}

std::vector<BadRequest> BadSampling() {
  return {
      {"no seed", [](auto& r) { r.mutable_sampling()->clear_seed(); }, kInvalid, "sampling.seed"},
      {"temperature NaN", [](auto& r) { r.mutable_sampling()->set_temperature(kNan); }, kInvalid,
       "temperature"},
      {"temperature -1", [](auto& r) { r.mutable_sampling()->set_temperature(-1); }, kInvalid,
       "temperature"},
      {"temperature 101", [](auto& r) { r.mutable_sampling()->set_temperature(101); }, kInvalid,
       "temperature"},
      {"temperature infinite", [](auto& r) { r.mutable_sampling()->set_temperature(INFINITY); },
       kInvalid, "temperature"},
      {"top_k -1", [](auto& r) { r.mutable_sampling()->set_top_k(-1); }, kInvalid, "top_k"},
      {"top_k 65", [](auto& r) { r.mutable_sampling()->set_top_k(65); }, kInvalid, "top_k"},
      {"top_p 0", [](auto& r) { r.mutable_sampling()->set_top_p(0); }, kInvalid, "top_p"},
      {"top_p NaN", [](auto& r) { r.mutable_sampling()->set_top_p(kNan); }, kInvalid, "top_p"},
      {"min_p 1.1", [](auto& r) { r.mutable_sampling()->set_min_p(1.1f); }, kInvalid, "min_p"},
      {"repetition 0", [](auto& r) { r.mutable_sampling()->set_repetition_penalty(0); }, kInvalid,
       "repetition_penalty"},
      {"presence 3", [](auto& r) { r.mutable_sampling()->set_presence_penalty(3); }, kInvalid,
       "presence_penalty"},
      {"frequency -3", [](auto& r) { r.mutable_sampling()->set_frequency_penalty(-3); }, kInvalid,
       "frequency_penalty"},
      {"logprobs -1", [](auto& r) { r.mutable_sampling()->set_logprobs(-1); }, kInvalid,
       "logprobs"},
      {"logprobs 21", [](auto& r) { r.mutable_sampling()->set_logprobs(21); }, kInvalid,
       "logprobs"},
  };
}

std::vector<BadRequest> BadStopsAndTheRest() {
  return {
      {"max_new_tokens 0", [](auto& r) { r.mutable_stop()->set_max_new_tokens(0); }, kInvalid,
       "max_new_tokens"},
      {"min above max", [](auto& r) { r.mutable_stop()->set_min_new_tokens(99); }, kInvalid,
       "min_new_tokens"},
      {"65 stop ids",
       [](auto& r) {
         for (int i = 0; i < 65; ++i) r.mutable_stop()->add_stop_ids(3);
       },
       kInvalid, "stop_ids"},
      {"stop id 64", [](auto& r) { r.mutable_stop()->add_stop_ids(64); }, kInvalid, "stop_ids"},
      {"stop strings", [](auto& r) { r.mutable_stop()->add_stop_strings(std::string(1, 'x')); },
       kInvalid, "stop_strings"},
      {"allocation 9",
       [](auto& r) {
         r.mutable_cache()->set_allocation(static_cast<v1::CacheParams::Allocation>(9));
       },
       kInvalid, "cache.allocation"},
      {"window of 15",
       [](auto& r) { r.mutable_cache()->mutable_attention()->set_window_tokens(15); }, kInvalid,
       "cache.attention.window_tokens"},
      {"window beyond the context",
       [](auto& r) { r.mutable_cache()->mutable_attention()->set_window_tokens(129); }, kInvalid,
       "cache.attention.window_tokens"},
      {"sinks without a window",
       [](auto& r) { r.mutable_cache()->mutable_attention()->set_sink_tokens(1); }, kInvalid,
       "cache.attention.sink_tokens"},
      {"unknown format", [](auto& r) { r.mutable_cache()->set_kv_format("q3"); }, kInvalid,
       "kv_format"},
      {"format not served", [](auto& r) { r.mutable_cache()->set_kv_format("f32"); }, kInvalid,
       "kv_format"},
      {"priority 101", [](auto& r) { r.set_priority(101); }, kInvalid, "priority"},
      {"priority -101", [](auto& r) { r.set_priority(-101); }, kInvalid, "priority"},
      {"another incarnation", [](auto& r) { r.set_expected_incarnation(7); }, StatusCode::kAborted,
       ""},
  };
}

TEST(WorkerServerTest, BadRequestsGetTheirErrorAndOthersGoOn) {
  const TestWorker worker = StartWorker({.context_tokens = 128});
  std::vector<BadRequest> table = BadIdsAndLengths();
  for (const auto& more : {BadSampling(), BadStopsAndTheRest()}) {
    table.insert(table.end(), more.begin(), more.end());
  }
  Generated running;
  std::atomic<bool> begun{false};
  std::promise<void> checked;
  const auto was_checked = checked.get_future().share();
  std::thread other([&] {
    grpc::ClientContext context;
    running = Generate(*worker.stub, MakeRequest("other", Prompt(1, 8), 100), context,
                       [&](const v1::WorkerGenerateResponse&) {
                         if (!begun.exchange(true)) was_checked.wait();
                       });
  });
  EXPECT_TRUE(WaitFor([&] { return begun.load(); }));
  for (const BadRequest& bad : table) {
    v1::WorkerGenerateRequest request = MakeRequest("bad", Prompt(2, 8), 4);
    bad.spoil(request);
    const Generated result = Generate(*worker.stub, request);
    EXPECT_EQ(result.status.code(), bad.code) << bad.what << ": " << result.status;
    EXPECT_THAT(DetailsOf(result.status).field, HasSubstr(bad.field)) << bad.what;
    EXPECT_TRUE(result.messages.empty()) << bad.what;
  }
  EXPECT_TRUE(Generate(*worker.stub, MakeRequest("good", Prompt(2, 127), INT64_MAX)).status.ok());
  checked.set_value();
  other.join();
  EXPECT_TRUE(running.status.ok()) << running.status;
  EXPECT_EQ(running.ids.size(), 100u);
}

TEST(WorkerServerTest, AStreamIsAcceptedThenTokensThenFinished) {
  WorkerServerOptions options;
  options.worker_id = "w0";
  const TestWorker worker = StartWorker({}, options);
  v1::WorkerGenerateRequest request = MakeRequest("a", Prompt(1, 40), 12);
  request.set_attempt(3);
  request.mutable_sampling()->set_logprobs(2);
  const Generated first = Generate(*worker.stub, request);
  ASSERT_TRUE(first.status.ok()) << first.status;
  ASSERT_GE(first.messages.size(), 3u);
  EXPECT_TRUE(first.messages.front().has_accepted());
  EXPECT_NE(first.messages.front().accepted().incarnation(), 0u);
  EXPECT_TRUE(first.messages.back().has_finished());
  for (const auto& message : first.messages) {
    EXPECT_EQ(message.attempt(), 3u);
    for (const v1::Token& token : message.tokens().tokens()) {
      EXPECT_TRUE(token.has_logprob());
      EXPECT_EQ(token.top_logprobs_size(), 2);
    }
  }
  EXPECT_EQ(first.ids.size(), 12u);
  EXPECT_EQ(first.finished.reason(), v1::LENGTH);
  EXPECT_EQ(first.finished.usage().prompt_tokens(), 40);
  EXPECT_EQ(first.finished.usage().cached_tokens(), 0);
  EXPECT_EQ(first.finished.usage().generated_tokens(), 12);
  request.set_request_id("b");
  const Generated second = Generate(*worker.stub, request);
  EXPECT_EQ(second.ids, first.ids);
  EXPECT_GE(second.finished.usage().cached_tokens(), 32);
  // A replay elsewhere goes on after what was delivered.
  request.set_request_id("c");
  request.mutable_generated_ids()->Add(first.ids.begin(), first.ids.begin() + 5);
  const Generated replay = Generate(*worker.stub, request);
  EXPECT_EQ(replay.ids, std::vector<int32_t>(first.ids.begin() + 5, first.ids.end()));
}

TEST(WorkerServerTest, TheModelsStopIdsEndAGenerationUnlessIgnored) {
  WorkerServerOptions options;
  options.vocabulary = SmallVocabulary();
  const TestWorker plain = StartWorker({});
  const Generated all = Generate(*plain.stub, MakeRequest("a", Prompt(1, 20), 60));
  options.vocabulary->stop_ids = {all.ids[4]};
  const TestWorker worker = StartWorker({}, options);
  const Generated stopped = Generate(*worker.stub, MakeRequest("a", Prompt(1, 20), 60));
  EXPECT_EQ(stopped.finished.reason(), v1::STOP);
  EXPECT_LE(stopped.ids.size(), 5u);
  v1::WorkerGenerateRequest request = MakeRequest("b", Prompt(1, 20), 60);
  request.mutable_stop()->set_ignore_model_stops(true);
  EXPECT_EQ(Generate(*worker.stub, request).ids, all.ids);
}

TEST(WorkerServerTest, ARequestMayAddItsMostStopIdsToTheMostOfAModel) {
  WorkerServerOptions options;
  options.vocabulary = SmallVocabulary();
  options.vocabulary->pieces.resize(300, "p");
  options.vocabulary->kinds.resize(300, text::TokenKind::kNormal);
  options.vocabulary->stop_ids.clear();
  for (int id = 200; id < 264; ++id) options.vocabulary->stop_ids.push_back(id);
  const TestWorker worker = StartWorker({.vocab = 300}, options);
  v1::WorkerGenerateRequest request = MakeRequest("most", Prompt(1, 20), 4);
  for (int id = 100; id < 164; ++id) request.mutable_stop()->add_stop_ids(id);
  const Generated most = Generate(*worker.stub, request);
  EXPECT_TRUE(most.status.ok()) << most.status;
  request.set_request_id("one-more");
  request.mutable_stop()->add_stop_ids(164);
  const Generated more = Generate(*worker.stub, request);
  EXPECT_EQ(more.status.code(), kInvalid) << more.status;
  EXPECT_THAT(DetailsOf(more.status).field, HasSubstr("stop_ids"));
}

TEST(WorkerServerTest, AVocabularyMissingTokensOfTheModelIsRefused) {
  WorkerServerOptions options;
  options.vocabulary = SmallVocabulary();
  const auto started = WorkerServer::Start(
      options,
      std::make_unique<worker::HashBackend>(worker::HashBackendOptions{.vocab = 65},
                                            std::make_shared<worker::HashBackendControl>()));
  ASSERT_EQ(started.status().code(), kInvalid);
  EXPECT_THAT(std::string(started.status().message()), HasSubstr("64"));
  EXPECT_THAT(std::string(started.status().message()), HasSubstr("65"));
}

TEST(WorkerServerTest, GetModelTellsTheVocabularyToThoseWhoLackIt) {
  WorkerServerOptions options;
  options.worker_id = "w7";
  options.vocabulary = SmallVocabulary();
  options.chat_template = "chatml";
  const TestWorker worker =
      StartWorker({.formats = {worker::KvFormat::kF16, worker::KvFormat::kQ8, worker::KvFormat::kQ4,
                               worker::KvFormat::kF32},
                   .sampling_defaults = {.temperature = 0.5f, .top_k = 12, .min_p = 0.0f}},
                  options);
  const auto get = [&](const std::string& known) {
    grpc::ClientContext context;
    v1::GetModelRequest request;
    request.set_known_fingerprint(known);
    v1::GetModelResponse response;
    EXPECT_TRUE(worker.stub->GetModel(&context, request, &response).ok());
    return response;
  };
  v1::GetModelResponse whole = get("");
  ASSERT_EQ(whole.vocabulary().pieces_size(), 64);
  EXPECT_EQ(whole.vocabulary().kinds().size(), 64u);
  EXPECT_EQ(whole.vocabulary().bos_id(), 1);
  EXPECT_FALSE(whole.vocabulary().has_eos_id());
  EXPECT_EQ(whole.vocabulary().chat_template(), "{{ x }}");
  EXPECT_EQ(whole.worker_id(), "w7");
  EXPECT_EQ(whole.chat_format_override(), "chatml");
  EXPECT_THAT(whole.kv_formats(), testing::ElementsAre("f16", "q8", "q4", "f32"));
  EXPECT_THAT(whole.offload_tiers(), testing::IsEmpty());
  EXPECT_EQ(whole.sampling_defaults().temperature(), 0.5f);
  EXPECT_EQ(whole.sampling_defaults().top_k(), 12);
  EXPECT_FALSE(whole.sampling_defaults().has_top_p());
  EXPECT_TRUE(whole.sampling_defaults().has_min_p());
  v1::GetModelResponse known = get(whole.fingerprint());
  EXPECT_FALSE(known.has_vocabulary());
  whole.clear_vocabulary();
  EXPECT_EQ(known.SerializeAsString(), whole.SerializeAsString());
}

TEST(WorkerServerTest, ALiveRequestIdIsRefusedAndTheFirstGoesOn) {
  const TestWorker worker = StartWorker({});
  std::promise<void> second_came;
  std::atomic<bool> begun{false};
  // The first goes on only when the second has been answered.
  int steps = 0;
  worker.control->on_run = [&](const worker::Batch&) {
    if (++steps == 3) second_came.get_future().wait();
  };
  Generated first;
  std::thread client([&] {
    grpc::ClientContext context;
    first = Generate(*worker.stub, MakeRequest("same", Prompt(1, 8), 400), context,
                     [&](const v1::WorkerGenerateResponse&) { begun = true; });
  });
  ASSERT_TRUE(WaitFor([&] { return begun.load(); }));
  const Generated second = Generate(*worker.stub, MakeRequest("same", Prompt(1, 8), 4));
  second_came.set_value();
  client.join();
  EXPECT_TRUE(first.status.ok());
  EXPECT_EQ(first.ids.size(), 400u);
  EXPECT_EQ(second.status.code(), StatusCode::kAborted) << second.status;
}

TEST(WorkerServerTest, ProgressComesWhileNothingElseDoes) {
  const TestWorker worker = StartWorker({});
  std::promise<void> seen;
  int steps = 0;
  worker.control->on_run = [&](const worker::Batch&) {
    if (++steps == 2) seen.get_future().wait();
  };
  grpc::ClientContext context;
  int progress = 0;
  const Generated result = Generate(*worker.stub, MakeRequest("a", Prompt(1, 30), 50), context,
                                    [&](const v1::WorkerGenerateResponse& message) {
                                      if (!message.has_progress()) return;
                                      EXPECT_EQ(message.progress().prompt_tokens(), 30);
                                      if (++progress == 2) seen.set_value();
                                    });
  EXPECT_TRUE(result.status.ok()) << result.status;
  EXPECT_EQ(result.ids.size(), 50u);
  EXPECT_GE(progress, 2);
}

TEST(WorkerServerTest, ADeadlineEndsTheRequestInTheEngine) {
  const TestWorker worker = StartWorker({.num_blocks = 4096, .context_tokens = 50'000});
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(50));
  const Generated result = Generate(*worker.stub, MakeRequest("a", Prompt(1, 30), 49'000), context);
  EXPECT_EQ(result.status.code(), StatusCode::kDeadlineExceeded) << result.status;
  EXPECT_TRUE(WaitFor([&] { return worker.server->engine().idle(); }));
}

TEST(WorkerServerTest, AClientThatDoesNotReadIsCancelledAndOthersGoOn) {
  const TestWorker worker = StartWorker({.num_blocks = 4096, .context_tokens = 50'000});
  v1::WorkerGenerateRequest request = MakeRequest("slow", Prompt(1, 8), 49'000);
  request.mutable_sampling()->set_logprobs(20);
  request.mutable_stop()->set_ignore_model_stops(true);
  grpc::ClientContext context;
  const auto stream = worker.stub->Generate(&context, request);
  v1::WorkerGenerateResponse message;
  ASSERT_TRUE(stream->Read(&message));
  EXPECT_TRUE(Generate(*worker.stub, MakeRequest("other", Prompt(2, 8), 20)).status.ok());
  EXPECT_TRUE(WaitFor([&] { return worker.server->engine().idle(); }));
  const worker::EngineStats stats = worker.server->engine().stats();
  EXPECT_EQ(stats.finished[static_cast<size_t>(worker::FinishReason::kCancelled)], 1u);
  size_t received = 0;
  while (stream->Read(&message)) received += static_cast<size_t>(message.tokens().tokens_size());
  EXPECT_FALSE(stream->Finish().ok());
  EXPECT_LT(received, 49'000u);
}

TEST(WorkerServerTest, DrainRefusesNewRequestsAndWaitsForRunningOnes) {
  const TestWorker worker = StartWorker({});
  std::atomic<bool> begun{false};
  Generated running;
  std::thread client([&] {
    grpc::ClientContext context;
    running = Generate(*worker.stub, MakeRequest("a", Prompt(1, 8), 300), context,
                       [&](const v1::WorkerGenerateResponse&) { begun = true; });
  });
  ASSERT_TRUE(WaitFor([&] { return begun.load(); }));
  const auto drain = [&](int64_t timeout_ms, v1::DrainResponse* response) {
    grpc::ClientContext context;
    v1::DrainRequest request;
    request.set_timeout_ms(timeout_ms);
    return worker.stub->Drain(&context, request, response).error_code();
  };
  v1::DrainResponse response;
  EXPECT_EQ(drain(-1, &response), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(drain(600'001, &response), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(drain(100'000, &response), grpc::StatusCode::OK);
  EXPECT_TRUE(response.drained());
  client.join();
  EXPECT_TRUE(running.status.ok());
  const Generated refused = Generate(*worker.stub, MakeRequest("b", Prompt(1, 8), 3));
  EXPECT_EQ(refused.status.code(), StatusCode::kUnavailable);
  EXPECT_EQ(DetailsOf(refused.status).reason, ErrorReason::kDraining);
  grpc::ClientContext context;
  v1::GetLoadResponse load;
  ASSERT_TRUE(worker.stub->GetLoad(&context, v1::GetLoadRequest(), &load).ok());
  EXPECT_TRUE(load.load().draining());
}

TEST(WorkerServerTest, ADrainingWorkerIsNotReady) {
  WorkerServerOptions options;
  options.server.metrics_address = "127.0.0.1:0";
  const TestWorker worker = StartWorker({}, options);
  const std::string metrics = worker.server->server().metrics_address();
  EXPECT_EQ(test::HttpGet(metrics, "/readyz").status, 200);
  grpc::ClientContext context;
  v1::DrainResponse response;
  ASSERT_TRUE(worker.stub->Drain(&context, v1::DrainRequest(), &response).ok());
  EXPECT_EQ(test::HttpGet(metrics, "/readyz").status, 503);
}

TEST(WorkerServerTest, ShutdownEndsWhatOutlivesItsGraceAsUnavailable) {
  const TestWorker worker = StartWorker({.num_blocks = 4096, .context_tokens = 50'000});
  std::atomic<bool> begun{false};
  Generated running;
  std::thread client([&] {
    grpc::ClientContext context;
    running =
        Generate(*worker.stub, MakeRequest("a", Prompt(1, 8), 49'000), context,
                 [&](const v1::WorkerGenerateResponse& m) { begun = begun || m.has_tokens(); });
  });
  ASSERT_TRUE(WaitFor([&] { return begun.load(); }));
  worker.server->Shutdown(std::chrono::milliseconds(1));
  worker.server->Shutdown(std::chrono::milliseconds(1));
  client.join();
  EXPECT_EQ(running.status.code(), StatusCode::kUnavailable) << running.status;
  EXPECT_LT(running.ids.size(), 49'000u);
}

TEST(WorkerServerTest, TheScrapeHasExactlyTheDeclaredNames) {
  WorkerServerOptions options;
  options.server.metrics_address = "127.0.0.1:0";
  const TestWorker worker = StartWorker({}, options);
  ASSERT_TRUE(Generate(*worker.stub, MakeRequest("a", Prompt(1, 40), 8)).status.ok());
  const std::string body =
      test::HttpGet(worker.server->server().metrics_address(), "/metrics").body;
  std::set<std::string> scraped, declared;
  const std::string mark = "# TYPE ";
  for (size_t at = body.find(mark); at != std::string::npos; at = body.find(mark, at + 1)) {
    const size_t name = at + mark.size();
    scraped.insert(body.substr(name, body.find(' ', name) - name));
  }
  for (const MetricDescription& row : DeclaredMetrics()) {
    if (row.role == MetricRole::kWorker) declared.insert(row.name);
  }
  EXPECT_EQ(scraped, declared);
  EXPECT_THAT(body, HasSubstr("kvist_prefill_tokens_total{worker=\"" + worker.server->worker_id() +
                              "\"} 40"));
  // 64 blocks of 16 tokens of 8 bytes.
  EXPECT_THAT(body, HasSubstr("kvist_memory_bytes{part=\"kv\",worker=\"" +
                              worker.server->worker_id() + "\"} 8192"));
  EXPECT_EQ(test::HttpGet(worker.server->server().metrics_address(), "/readyz").status, 200);
}

TEST(WorkerServerTest, BadOptionsAreRefused) {
  const auto start = [](const WorkerServerOptions& options) {
    return WorkerServer::Start(options, std::make_unique<worker::HashBackend>(
                                            worker::HashBackendOptions(),
                                            std::make_shared<worker::HashBackendControl>()))
        .status();
  };
  WorkerServerOptions options;
  options.worker_id = "a/b";
  EXPECT_EQ(start(options).code(), StatusCode::kInvalidArgument);
  options = {};
  options.model_path = "/nowhere.gguf";
  EXPECT_EQ(start(options).code(), StatusCode::kNotFound);
  options = {};
  const TestWorker first = StartWorker({});
  options.server.grpc_address = first.server->server().grpc_address();
  const absl::Status in_use = start(options);
  EXPECT_EQ(in_use.code(), StatusCode::kUnavailable);
  EXPECT_THAT(std::string(in_use.message()), HasSubstr(options.server.grpc_address));
}

}  // namespace
}  // namespace kvist::services
