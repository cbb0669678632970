// SIGTERM and SIGINT as something to wait for.
#ifndef KVIST_SERVICES_RUNTIME_SHUTDOWN_SIGNAL_H_
#define KVIST_SERVICES_RUNTIME_SHUTDOWN_SIGNAL_H_

#include <signal.h>

#include <chrono>

namespace kvist::services {

// Takes SIGTERM and SIGINT from the calling thread and all threads it starts later, for as long as
// it lives. Make one at the start of main, before any thread. Thread-safe but for construction and
// destruction.
class ShutdownSignal {
 public:
  ShutdownSignal();
  ~ShutdownSignal();  // gives the signals back to the calling thread
  ShutdownSignal(const ShutdownSignal&) = delete;
  ShutdownSignal& operator=(const ShutdownSignal&) = delete;

  // Waits for a signal, or for Notify; each wakes one waiter. Returns the signal's number, 0 for
  // Notify.
  int Wait();
  // As Wait; -1 if `time` passed first.
  int WaitFor(std::chrono::milliseconds time);
  // Wakes a waiter without a signal.
  void Notify();

 private:
  int WaitMs(int timeout_ms);

  sigset_t old_mask_;
  int signal_fd_ = -1;
  int event_fd_ = -1;
};

}  // namespace kvist::services

#endif  // KVIST_SERVICES_RUNTIME_SHUTDOWN_SIGNAL_H_
