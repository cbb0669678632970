// A cache manager and workers in one process, for tests of the roles.
#ifndef KVIST_TESTS_SUPPORT_ROLE_FIXTURE_H_
#define KVIST_TESTS_SUPPORT_ROLE_FIXTURE_H_

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cache_manager/event_log.h"
#include "cache_manager/snapshot.h"
#include "common/base/mutex.h"
#include "proto/kvist/v1/cache_manager.grpc.pb.h"
#include "proto/kvist/v1/session.grpc.pb.h"
#include "proto/kvist/v1/worker.grpc.pb.h"
#include "services/cache_manager/cache_manager_server.h"
#include "services/runtime/role_server.h"
#include "services/runtime/status_map.h"
#include "services/worker/worker_server.h"
#include "tests/support/hash_backend.h"

namespace kvist::services {

// Far beyond what a loaded machine needs: only a wrong program waits so long.
inline constexpr std::chrono::seconds kPatience{120};

// Polls `condition` until it holds. False: patience ran out.
inline bool WaitFor(const std::function<bool()>& condition) {
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    // What is waited for happens behind a connection: nothing here could be notified.
    Mutex mutex;
    CondVar never;
    MutexLock lock(mutex);
    never.WaitUntil(mutex, std::chrono::steady_clock::now() + std::chrono::milliseconds(2));
  }
  return true;
}

inline std::unique_ptr<CacheManagerServer> StartManager(CacheManagerServerOptions options = {}) {
  auto manager = CacheManagerServer::Start(options);
  EXPECT_TRUE(manager.ok()) << manager.status();
  return manager.ok() ? *std::move(manager) : nullptr;
}

// On the address of one that was stopped just now.
inline std::unique_ptr<CacheManagerServer> RestartManager(
    const CacheManagerServerOptions& options) {
  std::unique_ptr<CacheManagerServer> manager;
  EXPECT_TRUE(WaitFor([&] {
    auto started = CacheManagerServer::Start(options);
    if (started.ok()) manager = *std::move(started);
    return manager != nullptr;
  }));
  return manager;
}

struct TestWorker {
  std::shared_ptr<worker::HashBackendControl> control;
  std::unique_ptr<WorkerServer> server;
  std::unique_ptr<v1::Worker::Stub> stub;
};

inline TestWorker StartWorker(const worker::HashBackendOptions& backend,
                              WorkerServerOptions options = {}) {
  TestWorker result;
  result.control = std::make_shared<worker::HashBackendControl>();
  auto started =
      WorkerServer::Start(options, std::make_unique<worker::HashBackend>(backend, result.control));
  EXPECT_TRUE(started.ok()) << started.status();
  if (!started.ok()) return result;
  result.server = *std::move(started);
  result.stub = v1::Worker::NewStub(ConnectTo(result.server->server().grpc_address()));
  return result;
}

inline v1::WorkerGenerateRequest MakeRequest(const std::string& id, std::vector<int32_t> prompt,
                                             int64_t max_new_tokens) {
  v1::WorkerGenerateRequest request;
  request.set_request_id(id);
  request.set_tenant_salt(std::string(32, 's'));
  request.mutable_prompt_ids()->Add(prompt.begin(), prompt.end());
  request.mutable_sampling()->set_seed(1);
  request.mutable_stop()->set_max_new_tokens(max_new_tokens);
  return request;
}

// Tokens 1, 2, ... below a small vocabulary, different for each `start`.
inline std::vector<int32_t> Prompt(int32_t start, size_t tokens) {
  std::vector<int32_t> ids(tokens);
  for (size_t i = 0; i < tokens; ++i)
    ids[i] = static_cast<int32_t>(
        (static_cast<size_t>(start) * 7 + i * (1 + static_cast<size_t>(start) % 5)) % 60);
  return ids;
}

struct Generated {
  absl::Status status;
  std::vector<int32_t> ids;
  std::vector<v1::WorkerGenerateResponse> messages;
  v1::WorkerFinished finished;
};

// Reads a whole stream; `on_message` may cancel the context.
inline Generated Generate(
    v1::Worker::Stub& stub, const v1::WorkerGenerateRequest& request, grpc::ClientContext& context,
    const std::function<void(const v1::WorkerGenerateResponse&)>& on_message = {}) {
  context.set_wait_for_ready(true);
  Generated result;
  const auto stream = stub.Generate(&context, request);
  v1::WorkerGenerateResponse message;
  while (stream->Read(&message)) {
    for (const v1::Token& token : message.tokens().tokens()) {
      EXPECT_EQ(token.index(),
                static_cast<int64_t>(result.ids.size()) + request.generated_ids_size());
      result.ids.push_back(token.id());
    }
    if (message.has_finished()) result.finished = message.finished();
    result.messages.push_back(message);
    if (on_message) on_message(message);
  }
  result.status = FromGrpc(stream->Finish(), context);
  return result;
}

inline Generated Generate(v1::Worker::Stub& stub, const v1::WorkerGenerateRequest& request) {
  grpc::ClientContext context;
  return Generate(stub, request, context);
}

// "POOL/KEY" of every named block that the worker has, read between two steps.
inline std::set<std::string> BlocksOfPool(worker::Engine& engine) {
  std::set<std::string> blocks;
  engine.RunBetweenSteps([&](worker::EngineState& state) {
    cache_manager::SnapshotBuilder snapshot(
        {state.pools, &state.sessions, &state.events, state.tiers});
    while (true) {
      const auto slice = snapshot.NextSlice(1000);
      for (const cache_manager::Event& event : slice.events) {
        const auto* stored = std::get_if<cache_manager::BlockStored>(&event);
        if (stored != nullptr) blocks.insert(absl::StrCat(stored->pool, "/", stored->key.Hex()));
      }
      if (slice.last) return;
    }
  });
  return blocks;
}

// The same as the manager tells it, page by page.
inline std::set<std::string> BlocksOfMirror(v1::CacheManager::Stub& manager,
                                            const std::string& worker_id) {
  std::set<std::string> blocks;
  v1::ListBlocksRequest request;
  request.set_worker_id(worker_id);
  request.set_page_size(7);
  while (true) {
    grpc::ClientContext context;
    context.set_wait_for_ready(true);
    v1::ListBlocksResponse response;
    if (!manager.ListBlocks(&context, request, &response).ok()) return {"no answer"};
    for (const v1::BlockInfo& block : response.blocks()) {
      cache_manager::BlockKey key;
      std::memcpy(key.bytes.data(), block.key().data(), key.bytes.size());
      blocks.insert(absl::StrCat(block.pool(), "/", key.Hex()));
    }
    if (response.next_page_token().empty()) return blocks;
    request.set_page_token(response.next_page_token());
  }
}

// What the manager says of a worker; a default message if it does not know it.
inline v1::WorkerInfo InfoOf(v1::CacheManager::Stub& manager, const std::string& worker_id) {
  grpc::ClientContext context;
  context.set_wait_for_ready(true);
  v1::ListWorkersResponse response;
  const grpc::Status status = manager.ListWorkers(&context, v1::ListWorkersRequest(), &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  for (const v1::WorkerInfo& info : response.workers()) {
    if (info.worker_id() == worker_id) return info;
  }
  return v1::WorkerInfo();
}

// Waits until the digests agree and every block is alike. REQUIRES: the worker is at rest.
inline void ExpectMirrorIsPool(v1::CacheManager::Stub& manager, WorkerServer& worker) {
  const bool alike = WaitFor([&] {
    return InfoOf(manager, worker.worker_id()).confidence() == v1::EXACT &&
           BlocksOfMirror(manager, worker.worker_id()) == BlocksOfPool(worker.engine());
  });
  EXPECT_TRUE(alike) << "confidence " << InfoOf(manager, worker.worker_id()).confidence();
  EXPECT_EQ(BlocksOfMirror(manager, worker.worker_id()), BlocksOfPool(worker.engine()));
}

}  // namespace kvist::services

#endif  // KVIST_TESTS_SUPPORT_ROLE_FIXTURE_H_
