// A worker over real gRPC that does what a test's script says.
#ifndef KVIST_TESTS_SERVICES_FRONTEND_SCRIPTED_WORKER_H_
#define KVIST_TESTS_SERVICES_FRONTEND_SCRIPTED_WORKER_H_

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/base/mutex.h"
#include "common/base/status.h"
#include "proto/kvist/v1/worker.grpc.pb.h"
#include "services/runtime/role_server.h"
#include "services/runtime/status_map.h"
#include "tests/services/frontend/letter_vocabulary.h"

namespace kvist::services {

// The stream as a script sees it. Used by one thread.
class ScriptStream {
 public:
  ScriptStream(const v1::WorkerGenerateRequest& request, grpc::ServerContext* context,
               grpc::ServerWriter<v1::WorkerGenerateResponse>* writer)
      : request_(request), context_(context), writer_(writer) {}

  const v1::WorkerGenerateRequest& request() const { return request_; }
  void Accept() {
    v1::WorkerGenerateResponse response;
    response.mutable_accepted()->set_incarnation(1);
    Write(std::move(response), request_.attempt());
  }
  // Tokens [from, to), each what TokenOf says.
  void Tokens(int64_t from, int64_t to) { Tokens(from, to, request_.attempt()); }
  void Tokens(int64_t from, int64_t to, uint32_t attempt) {
    v1::WorkerGenerateResponse response;
    for (int64_t i = from; i < to; ++i) {
      v1::Token& token = *response.mutable_tokens()->add_tokens();
      token.set_index(i);
      token.set_id(TokenOf(i));
    }
    Write(std::move(response), attempt);
  }
  void TokenId(int64_t index, int32_t id) {
    v1::WorkerGenerateResponse response;
    v1::Token& token = *response.mutable_tokens()->add_tokens();
    token.set_index(index);
    token.set_id(id);
    Write(std::move(response), request_.attempt());
  }
  void Progress(int64_t done) {
    v1::WorkerGenerateResponse response;
    response.mutable_progress()->set_prompt_tokens_done(done);
    response.mutable_progress()->set_prompt_tokens(request_.prompt_ids_size());
    Write(std::move(response), request_.attempt());
  }
  void Finish(v1::FinishReason reason, int64_t cached_tokens = 0) {
    v1::WorkerGenerateResponse response;
    response.mutable_finished()->set_reason(reason);
    response.mutable_finished()->mutable_usage()->set_cached_tokens(cached_tokens);
    Write(std::move(response), request_.attempt());
  }
  // Sends nothing until the caller goes away.
  void StaySilent() {
    while (!context_->IsCancelled()) {
      Mutex mutex;
      CondVar never;
      MutexLock lock(mutex);
      never.WaitUntil(mutex, std::chrono::steady_clock::now() + std::chrono::milliseconds(5));
    }
  }
  // The error of a worker that runs a request of this name.
  grpc::Status NameTaken() {
    return ToGrpc(WithDetails(absl::AbortedError("request_id: in use"), {.field = "request_id"}),
                  context_);
  }
  bool cancelled() const { return context_->IsCancelled(); }

  // The model: token i is a letter that depends on i alone.
  static int32_t TokenOf(int64_t index) { return static_cast<int32_t>(index % 26) + LetterId('a'); }

 private:
  void Write(v1::WorkerGenerateResponse response, uint32_t attempt) {
    response.set_attempt(attempt);
    writer_->Write(response);
  }
  const v1::WorkerGenerateRequest& request_;
  grpc::ServerContext* context_;
  grpc::ServerWriter<v1::WorkerGenerateResponse>* writer_;
};

using Script = std::function<grpc::Status(ScriptStream&)>;

// Serves on a port of its own. Thread-safe.
class ScriptedWorker final : public v1::Worker::Service {
 public:
  ScriptedWorker(std::string id, Script script) : id_(std::move(id)), script_(std::move(script)) {
    server_ = RoleServer::Start({.role = "worker"}, {this}).value();
    server_->SetReady(true);
  }
  ~ScriptedWorker() override { Stop(); }

  const std::string& id() const { return id_; }
  const std::string& address() const { return server_->grpc_address(); }
  int calls() const { return calls_; }
  int ended_calls() const { return ended_calls_; }
  void Stop() { server_->Shutdown(std::chrono::milliseconds(0)); }

  grpc::Status Generate(grpc::ServerContext* context, const v1::WorkerGenerateRequest* request,
                        grpc::ServerWriter<v1::WorkerGenerateResponse>* writer) override {
    ++calls_;
    ScriptStream stream(*request, context, writer);
    const grpc::Status status = script_(stream);
    ++ended_calls_;
    return status;
  }

  grpc::Status GetModel(grpc::ServerContext*, const v1::GetModelRequest*,
                        v1::GetModelResponse* response) override {
    const text::Vocabulary vocabulary = LetterVocabulary();
    response->set_fingerprint("letters");
    response->set_name("letters");
    response->set_architecture("none");
    response->set_context_tokens(512);
    response->set_block_tokens(16);
    response->add_kv_formats("f16");
    response->add_offload_tiers("disk");
    response->set_worker_id(id_);
    response->set_incarnation(1);
    v1::Vocabulary& wire = *response->mutable_vocabulary();
    wire.set_pretokenizer(static_cast<uint32_t>(vocabulary.pretokenizer));
    for (const std::string& piece : vocabulary.pieces) wire.add_pieces(piece);
    for (const text::TokenKind kind : vocabulary.kinds) {
      wire.mutable_kinds()->push_back(static_cast<char>(kind));
    }
    wire.set_eos_id(kEndId);
    wire.add_stop_ids(kEndId);
    wire.set_chat_template(vocabulary.chat_template);
    return grpc::Status::OK;
  }

  grpc::Status GetLoad(grpc::ServerContext*, const v1::GetLoadRequest*,
                       v1::GetLoadResponse* response) override {
    response->set_incarnation(1);
    response->set_worker_id(id_);
    return grpc::Status::OK;
  }

 private:
  const std::string id_;
  const Script script_;
  std::atomic<int> calls_ = 0;
  std::atomic<int> ended_calls_ = 0;
  std::unique_ptr<RoleServer> server_;
};

}  // namespace kvist::services

#endif  // KVIST_TESTS_SERVICES_FRONTEND_SCRIPTED_WORKER_H_
