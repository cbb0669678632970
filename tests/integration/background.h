// A request that runs while a test does something to the roles behind it.
#ifndef KVIST_TESTS_INTEGRATION_BACKGROUND_H_
#define KVIST_TESTS_INTEGRATION_BACKGROUND_H_

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "common/base/mutex.h"
#include "services/client/client.h"

namespace kvist::services {

// Looks every 10 ms for up to a minute. Whether it came true.
inline bool Until(const std::function<bool()>& condition) {
  const auto until = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  Mutex mutex;
  CondVar never;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > until) return false;
    MutexLock lock(mutex);
    never.WaitUntil(mutex, std::chrono::steady_clock::now() + std::chrono::milliseconds(10));
  }
  return true;
}

// Runs a request in a thread of its own and counts the tokens that came. `status` and `generated`
// are to be read after Join.
class Background {
 public:
  Background(std::unique_ptr<Client> client, const v1::GenerateRequest& request)
      : client_(std::move(client)), thread_([this, request] {
          GenerateOptions options;
          options.cancellation = &cancellation;
          options.on_delta = [this](const v1::Delta& delta) { tokens += delta.tokens_size(); };
          status = client_->Generate(request, options, &generated);
        }) {}
  ~Background() { Join(); }
  void Join() {
    if (thread_.joinable()) thread_.join();
  }
  bool WaitForTokens(int64_t count) const {
    return Until([&] { return tokens.load() >= count; });
  }
  bool WaitForFirstToken() const { return WaitForTokens(1); }

  Cancellation cancellation;
  std::atomic<int64_t> tokens = 0;
  Generated generated;
  absl::Status status;

 private:
  std::unique_ptr<Client> client_;
  std::thread thread_;
};

}  // namespace kvist::services

#endif  // KVIST_TESTS_INTEGRATION_BACKGROUND_H_
