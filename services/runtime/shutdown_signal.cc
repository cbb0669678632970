#include "services/runtime/shutdown_signal.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>

#include "common/base/check.h"

namespace kvist::services {

ShutdownSignal::ShutdownSignal() {
  sigset_t mask;
  sigemptyset(&mask);
  sigaddset(&mask, SIGTERM);
  sigaddset(&mask, SIGINT);
  KVIST_CHECK(pthread_sigmask(SIG_BLOCK, &mask, &old_mask_) == 0);
  signal_fd_ = signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK);
  event_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK | EFD_SEMAPHORE);
  KVIST_CHECK(signal_fd_ >= 0 && event_fd_ >= 0, "no file descriptor left at start");
}

ShutdownSignal::~ShutdownSignal() {
  close(signal_fd_);
  close(event_fd_);
  pthread_sigmask(SIG_SETMASK, &old_mask_, nullptr);
}

int ShutdownSignal::Wait() { return WaitMs(-1); }

int ShutdownSignal::WaitFor(std::chrono::milliseconds time) {
  return WaitMs(static_cast<int>(std::clamp<int64_t>(time.count(), 0, INT_MAX)));
}

int ShutdownSignal::WaitMs(int timeout_ms) {
  while (true) {
    pollfd fds[2] = {{.fd = signal_fd_, .events = POLLIN, .revents = 0},
                     {.fd = event_fd_, .events = POLLIN, .revents = 0}};
    const int ready = poll(fds, 2, timeout_ms);
    if (ready == 0) return -1;
    if (ready < 0) {
      KVIST_CHECK(errno == EINTR);
      continue;
    }
    signalfd_siginfo info;
    if (read(signal_fd_, &info, sizeof(info)) == sizeof(info)) {
      return static_cast<int>(info.ssi_signo);
    }
    uint64_t count = 0;
    if (read(event_fd_, &count, sizeof(count)) == sizeof(count)) return 0;
  }
}

void ShutdownSignal::Notify() {
  const uint64_t one = 1;
  KVIST_CHECK(write(event_fd_, &one, sizeof(one)) == sizeof(one));
}

}  // namespace kvist::services
