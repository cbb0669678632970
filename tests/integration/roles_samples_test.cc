// Several samples of one prompt, and forks of sessions, as a client sees them.
#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

#include "tests/integration/roles_fixture.h"

namespace kvist::services {
namespace {

v1::GenerateRequest Sampled(const std::vector<int32_t>& ids, int64_t max_new, int32_t samples) {
  v1::GenerateRequest request = IdsRequest(ids, max_new);
  request.mutable_sampling()->set_temperature(0.9f);
  request.mutable_sampling()->set_seed(7);
  if (samples > 1) request.set_samples(samples);
  return request;
}

std::vector<int32_t> IdsOf(const GeneratedSample& sample) {
  std::vector<int32_t> ids;
  for (const v1::Token& token : sample.tokens) ids.push_back(token.id());
  return ids;
}

class SamplesTest : public RolesTest {
 protected:
  // What a lone request with that sample index gives.
  Generated Alone(v1::GenerateRequest request, int32_t index) {
    request.clear_samples();
    request.mutable_sampling()->set_sample_index(index);
    Generated alone;
    const absl::Status status = Generate(request, &alone);
    EXPECT_TRUE(status.ok()) << status;
    return alone;
  }
  void ExpectAsAlone(const v1::GenerateRequest& request, const Generated& generated) {
    ASSERT_EQ(generated.samples.size(), static_cast<size_t>(request.samples()));
    for (int32_t i = 0; i < request.samples(); ++i) {
      const GeneratedSample& sample = generated.samples[static_cast<size_t>(i)];
      const Generated alone = Alone(request, i);
      EXPECT_EQ(IdsOf(sample), services::IdsOf(alone)) << i;
      EXPECT_EQ(sample.text, alone.text) << i;
      EXPECT_EQ(sample.finished.reason(), alone.finished.reason()) << i;
      EXPECT_EQ(sample.finished.sample(), i);
      EXPECT_EQ(sample.finished.generated_tokens(), static_cast<int64_t>(sample.tokens.size()));
      for (size_t t = 0; t < sample.tokens.size(); ++t) {
        EXPECT_EQ(sample.tokens[t].index(), static_cast<int64_t>(t));
      }
    }
    EXPECT_EQ(generated.text, generated.samples[0].text);
    EXPECT_EQ(services::IdsOf(generated), IdsOf(generated.samples[0]));
  }
};

TEST_F(SamplesTest, SampleKIsALoneRequestWithIndexK) {
  for (const size_t prompt : {5, 32, 200}) {
    const v1::GenerateRequest request = Sampled(RandomIds(prompt, 1), 40, 4);
    Generated generated;
    ASSERT_TRUE(Generate(request, &generated).ok());
    EXPECT_EQ(generated.finished.usage().prompt_tokens(), static_cast<int64_t>(prompt));
    EXPECT_EQ(generated.finished.usage().generated_tokens(), 4 * 40);
    std::set<std::vector<int32_t>> different;
    for (size_t i = 0; i < 4; ++i) {
      different.insert(IdsOf(generated.samples[i]));
      // Whether it came before or after the end of the prompt.
      if (i == 0) continue;
      EXPECT_GE(generated.samples[i].finished.cached_tokens(), static_cast<int64_t>(prompt) - 1);
    }
    EXPECT_EQ(different.size(), 4u);
    ExpectAsAlone(request, generated);
    EXPECT_TRUE(cluster_.Idle());
  }
}

TEST_F(SamplesTest, GreedySamplesAreEqual) {
  v1::GenerateRequest request = IdsRequest(RandomIds(40, 2), 20);
  request.set_samples(3);
  Generated generated;
  ASSERT_TRUE(Generate(request, &generated).ok());
  EXPECT_EQ(generated.samples[1].text, generated.text);
  EXPECT_EQ(generated.samples[2].text, generated.text);
}

TEST_F(SamplesTest, TheFirstIndexMovesAll) {
  v1::GenerateRequest request = Sampled(RandomIds(40, 2), 20, 2);
  request.mutable_sampling()->set_sample_index(3);
  Generated generated;
  ASSERT_TRUE(Generate(request, &generated).ok());
  EXPECT_EQ(IdsOf(generated.samples[1]), services::IdsOf(Alone(request, 4)));
}

TEST_F(SamplesTest, StopStringsAndLogprobsAreEachSamplesOwn) {
  v1::GenerateRequest request = Sampled(RandomIds(40, 3), 60, 4);
  request.mutable_sampling()->set_logprobs(2);
  request.mutable_stop()->add_stop_strings("e");
  Generated generated;
  ASSERT_TRUE(Generate(request, &generated).ok());
  std::set<size_t> lengths;
  for (const GeneratedSample& sample : generated.samples) {
    lengths.insert(sample.tokens.size());
    EXPECT_EQ(sample.text.find('e'), std::string::npos);
    for (const v1::Token& token : sample.tokens) EXPECT_EQ(token.top_logprobs_size(), 2);
  }
  EXPECT_GT(lengths.size(), 1u);
  ExpectAsAlone(request, generated);
}

TEST_F(SamplesTest, EveryCacheKindGivesTheSame) {
  const std::vector<int32_t> ids = RandomIds(50, 4);
  Generated paged;
  ASSERT_TRUE(Generate(Sampled(ids, 12, 3), &paged).ok());
  for (const auto allocation : {v1::CacheParams::STATIC, v1::CacheParams::NONE}) {
    v1::GenerateRequest request = Sampled(ids, 12, 3);
    request.mutable_cache()->set_allocation(allocation);
    Generated generated;
    ASSERT_TRUE(Generate(request, &generated).ok());
    for (size_t i = 0; i < 3; ++i) {
      EXPECT_EQ(IdsOf(generated.samples[i]), IdsOf(paged.samples[i]));
    }
  }
}

TEST_F(SamplesTest, BadCountsAreRefused) {
  CreateSession("s");
  struct Row {
    v1::GenerateRequest request;
    std::string field;
  };
  std::vector<Row> rows(4, {Sampled({1, 2, 3}, 2, 2), "samples"});
  rows[0].request.set_samples(0);
  rows[1].request.set_samples(17);
  rows[2].request.set_session_id("s");
  rows[3].request.set_request_id(std::string(62, 'x'));
  rows[3].field = "request_id";
  for (const Row& row : rows) {
    Generated generated;
    const absl::Status status = Generate(row.request, &generated);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_EQ(DetailsOf(status).field, row.field);
  }
  Generated one;
  v1::GenerateRequest alone = Sampled({1, 2, 3}, 2, 1);
  alone.set_samples(1);
  alone.set_session_id("s");
  EXPECT_TRUE(Generate(alone, &one).ok());
  EXPECT_TRUE(one.samples.empty());
}

TEST_F(SamplesTest, AClientThatLeavesEndsAllOfThem) {
  cluster_.pace.SetStepMs(10);
  Background stream(cluster_.Connect(), Sampled(RandomIds(40, 5), 500, 4));
  ASSERT_TRUE(stream.WaitForTokens(20));
  EXPECT_EQ(cluster_.workers[0]->engine().load().running_sequences, 4u);
  stream.cancellation.Cancel();
  stream.Join();
  EXPECT_EQ(stream.status.code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(RoleCluster::Until([&] { return cluster_.Idle(); }));
}

TEST_F(SamplesTest, ADeadlineEndsEachWithWhatItHas) {
  cluster_.pace.SetStepMs(10);
  GenerateOptions options;
  options.timeout = std::chrono::milliseconds(400);
  Generated generated;
  const absl::Status status =
      client_->Generate(Sampled(RandomIds(40, 5), 500, 3), options, &generated);
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  for (const GeneratedSample& sample : generated.samples) EXPECT_GT(sample.tokens.size(), 0u);
  EXPECT_TRUE(RoleCluster::Until([&] { return cluster_.Idle(); }));
}

class TwoWorkersSamplesTest : public SamplesTest {
 protected:
  TwoWorkersSamplesTest() { cluster_.StartWorker(); }
};

TEST_F(TwoWorkersSamplesTest, ALostWorkerIsReplayedSampleBySample) {
  ASSERT_TRUE(RoleCluster::Until([&] { return cluster_.ReadyWorkers() == 2; }));
  const v1::GenerateRequest request = Sampled(RandomIds(40, 1), 80, 3);
  cluster_.pace.SetStepMs(10);
  Background stream(cluster_.Connect(), request);
  ASSERT_TRUE(stream.WaitForTokens(9));
  for (auto& worker : cluster_.workers) {
    if (worker->engine().load().running_sequences == 0) continue;
    EXPECT_EQ(worker->engine().load().running_sequences, 3u);  // all on one
    worker->Shutdown(std::chrono::milliseconds(0));
    break;
  }
  cluster_.pace.SetStepMs(0);
  stream.Join();
  EXPECT_TRUE(stream.status.ok()) << stream.status;
  for (const GeneratedSample& sample : stream.generated.samples) {
    EXPECT_EQ(sample.finished.attempts(), 2u);
  }
  ExpectAsAlone(request, stream.generated);
}

TEST(SamplesAdmissionTest, ARequestCountsAsItsSamples) {
  RoleCluster cluster({.max_running_requests = 4});
  const auto client = cluster.Connect();
  cluster.pace.SetStepMs(10);
  Background three(cluster.Connect(), Sampled(RandomIds(20, 1), 100, 3));
  ASSERT_TRUE(three.WaitForFirstToken());
  Generated generated;
  const absl::Status two = client->Generate(Sampled({1}, 1, 2), {}, &generated);
  EXPECT_EQ(two.code(), absl::StatusCode::kResourceExhausted) << two;
  EXPECT_TRUE(client->Generate(Sampled({1}, 1, 1), {}, &generated).ok());
  const absl::Status five = client->Generate(Sampled({1}, 1, 5), {}, &generated);
  EXPECT_EQ(five.code(), absl::StatusCode::kOutOfRange) << five;
  cluster.pace.SetStepMs(0);
  three.Join();
  EXPECT_TRUE(three.status.ok());
}

class SessionForkTest : public RolesTest {
 protected:
  absl::StatusOr<v1::Session> Fork(const std::string& id, const std::string& new_id) {
    v1::ForkSessionRequest request;
    request.set_id(id);
    request.set_new_id(new_id);
    return client_->ForkSession(request);
  }
  v1::SessionMemory MemoryOf(const std::string& id) {
    const auto memory = client_->SessionMemoryOf(id);
    return memory.ok() && memory->size() == 1 ? memory->front() : v1::SessionMemory();
  }
};

TEST_F(SessionForkTest, ItSharesTheBlocksAtOnceFindsThemCachedAndGoesItsOwnWay) {
  CreateSession("s");
  Generated first;
  ASSERT_TRUE(Generate(InSession(IdsRequest(RandomIds(70, 1), 30), "s"), &first).ok());
  const auto forked = Fork("s", "f");
  ASSERT_TRUE(forked.ok()) << forked.status();
  EXPECT_EQ(forked->history_tokens(), 100);
  const int64_t block = cluster_.workers[0]->engine().backend().pools()[0].block_bytes;
  for (const char* id : {"s", "f"}) {
    EXPECT_EQ(MemoryOf(id).shared_bytes(), 6 * block) << id;  // of 99 stored tokens
    EXPECT_EQ(MemoryOf(id).exclusive_bytes(), 0) << id;
    EXPECT_EQ(MemoryOf(id).phase(), v1::IDLE) << id;
  }
  Generated in_fork, in_original;
  ASSERT_TRUE(Generate(InSession(IdsRequest(RandomIds(9, 2), 40), "f"), &in_fork).ok());
  EXPECT_EQ(in_fork.finished.usage().cached_tokens(), 99);
  ASSERT_TRUE(Generate(InSession(IdsRequest(RandomIds(9, 3), 40), "s"), &in_original).ok());
  EXPECT_GE(in_original.finished.usage().cached_tokens(), 99);  // the fork computed one more
  EXPECT_TRUE(RoleCluster::Until([&] {
    return MemoryOf("s").shared_bytes() == 6 * block && MemoryOf("s").exclusive_bytes() > 0 &&
           MemoryOf("f").shared_bytes() == 6 * block && MemoryOf("f").exclusive_bytes() > 0;
  }));
  // Each is what the whole history in one request gives.
  std::vector<int32_t> history = RandomIds(70, 1);
  for (const int32_t id : IdsOf(first)) history.push_back(id);
  for (const int32_t id : RandomIds(9, 2)) history.push_back(id);
  Generated whole;
  ASSERT_TRUE(Generate(IdsRequest(history, 40), &whole).ok());
  EXPECT_EQ(IdsOf(whole), IdsOf(in_fork));
}

TEST_F(SessionForkTest, EvictingTheOneSparesWhatTheOtherHolds) {
  CreateSession("s");
  Generated first;
  ASSERT_TRUE(Generate(InSession(IdsRequest(RandomIds(70, 1), 30), "s"), &first).ok());
  ASSERT_TRUE(Fork("s", "f").ok());
  v1::EvictRequest evict;
  evict.mutable_session()->set_session_id("s");
  const auto outcome = client_->Evict(evict);
  ASSERT_TRUE(outcome.ok());
  EXPECT_EQ(outcome->outcomes(0).blocks(), 0);
  ASSERT_TRUE(client_->DeleteSession("s").ok());
  Generated in_fork;
  ASSERT_TRUE(Generate(InSession(IdsRequest(RandomIds(9, 2), 5), "f"), &in_fork).ok());
  EXPECT_GE(in_fork.finished.usage().cached_tokens(), 96);
}

TEST_F(SessionForkTest, RefusalsAreNamedAndAnOpenTurnKeepsItFromBeingForked) {
  EXPECT_EQ(Fork("s", "f").status().code(), absl::StatusCode::kNotFound);
  CreateSession("s");
  EXPECT_EQ(Fork("s", "s").status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(DetailsOf(Fork("s", "implicit-f").status()).field, "new_id");
  EXPECT_EQ(DetailsOf(Fork("", "f").status()).field, "id");
  cluster_.pace.SetStepMs(10);
  Background turn(cluster_.Connect(), InSession(IdsRequest(RandomIds(20, 1), 100), "s"));
  ASSERT_TRUE(turn.WaitForFirstToken());
  EXPECT_EQ(Fork("s", "f").status().code(), absl::StatusCode::kAborted);
  cluster_.pace.SetStepMs(0);
  turn.Join();
  EXPECT_TRUE(Fork("s", "").ok());
}

}  // namespace
}  // namespace kvist::services
