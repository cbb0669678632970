// A worker's side of the stream to the cache manager, played by a test.
#ifndef KVIST_TESTS_SERVICES_CACHE_MANAGER_FAKE_PEER_H_
#define KVIST_TESTS_SERVICES_CACHE_MANAGER_FAKE_PEER_H_

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <memory>
#include <string>

#include "proto/kvist/v1/cache_manager.grpc.pb.h"
#include "tests/support/role_fixture.h"

namespace kvist::services {

// A worker made by hand, honest unless told otherwise.
class FakePeer {
 public:
  FakePeer(const std::string& address, const std::string& id, uint64_t incarnation)
      : stub_(v1::CacheManager::NewStub(ConnectTo(address))),
        stream_(stub_->WorkerStream(&context_)) {
    v1::Hello* hello = hello_.mutable_hello();
    hello->set_worker_id(id);
    hello->set_incarnation(incarnation);
    hello->set_protocol_version(1);
    hello->set_model_fingerprint("model");
    hello->set_address("127.0.0.1:1");
    hello->set_context_tokens(100);
    v1::Pool* pool = hello->add_pools();
    pool->set_group("full");
    pool->set_kv_format("f16");
    pool->set_bytes_per_block(1000);
    pool->set_num_blocks(100);
    pool->set_block_tokens(16);
  }
  ~FakePeer() { context_.TryCancel(); }

  v1::WorkerMessage& hello() { return hello_; }
  bool Send(const v1::WorkerMessage& message) { return stream_->Write(message); }
  bool SayHello() { return Send(hello_); }
  bool Read(v1::ManagerMessage* message) { return stream_->Read(message); }
  // The status with which the manager ended the stream.
  grpc::Status End() {
    v1::ManagerMessage message;
    while (stream_->Read(&message)) {
    }
    return stream_->Finish();
  }
  // Answers the resync that follows a Hello with an empty snapshot.
  void SendEmptySnapshot() {
    v1::ManagerMessage message;
    while (stream_->Read(&message) && !message.has_resync()) {
    }
    v1::WorkerMessage chunk;
    chunk.mutable_snapshot()->set_resync_id(message.resync().resync_id());
    chunk.mutable_snapshot()->set_last(true);
    Send(chunk);
    SendHeartbeat();
  }
  // That of a worker without events and blocks.
  void SendHeartbeat() {
    v1::WorkerMessage heartbeat;
    heartbeat.mutable_heartbeat()->add_digests();
    Send(heartbeat);
  }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<v1::CacheManager::Stub> stub_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::WorkerMessage, v1::ManagerMessage>> stream_;
  v1::WorkerMessage hello_;
};

// The events of a worker that stored one block.
inline v1::WorkerMessage Stored(const std::string& key, uint32_t pool = 0) {
  v1::WorkerMessage message;
  message.mutable_events()->set_first_seq(1);
  v1::BlockStored* stored = message.mutable_events()->add_events()->mutable_stored();
  stored->set_pool(pool);
  stored->set_key(key);
  stored->set_parent(std::string(16, 'p'));
  return message;
}

}  // namespace kvist::services

#endif  // KVIST_TESTS_SERVICES_CACHE_MANAGER_FAKE_PEER_H_
