// Ctrl-C as the end of an answer, not of the process.
#ifndef KVIST_SERVICES_CLI_INTERRUPT_H_
#define KVIST_SERVICES_CLI_INTERRUPT_H_

#include <pthread.h>
#include <signal.h>

#include <functional>
#include <thread>
#include <utility>

#include "services/runtime/shutdown_signal.h"

namespace kvist::services {

// Ends the process by the signal `number` (SIGINT or SIGTERM) as if nobody had caught it.
inline void EndBySignal(int number) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, number);
  pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
  raise(number);
}

// Calls `on_signal` with the number of each SIGINT or SIGTERM while it lives. Make it before any
// other thread. Thread-compatible.
class InterruptWatch {
 public:
  explicit InterruptWatch(std::function<void(int signal)> on_signal)
      : on_signal_(std::move(on_signal)), thread_([this] {
          for (int number = signal_.Wait(); number != 0; number = signal_.Wait())
            on_signal_(number);
        }) {}
  ~InterruptWatch() {
    signal_.Notify();
    thread_.join();
  }
  InterruptWatch(const InterruptWatch&) = delete;
  InterruptWatch& operator=(const InterruptWatch&) = delete;

 private:
  ShutdownSignal signal_;
  std::function<void(int)> on_signal_;
  std::thread thread_;
};

}  // namespace kvist::services

#endif  // KVIST_SERVICES_CLI_INTERRUPT_H_
