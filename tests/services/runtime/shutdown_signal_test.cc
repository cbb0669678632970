#include "services/runtime/shutdown_signal.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <thread>

namespace kvist::services {
namespace {

TEST(ShutdownSignalTest, SignalsOfTheProcessWakeTheWaiter) {
  ShutdownSignal signal;
  kill(getpid(), SIGTERM);
  EXPECT_EQ(signal.Wait(), SIGTERM);
  kill(getpid(), SIGINT);
  EXPECT_EQ(signal.WaitFor(std::chrono::seconds(60)), SIGINT);
}

TEST(ShutdownSignalTest, NotifyWakesOneWaiterAndTimeEndsAWait) {
  ShutdownSignal signal;
  EXPECT_EQ(signal.WaitFor(std::chrono::milliseconds(1)), -1);
  std::thread other([&] { signal.Notify(); });
  EXPECT_EQ(signal.Wait(), 0);
  other.join();
  EXPECT_EQ(signal.WaitFor(std::chrono::milliseconds(1)), -1);
}

TEST(ShutdownSignalTest, TheMaskIsGivenBack) {
  { ShutdownSignal signal; }
  sigset_t mask;
  pthread_sigmask(SIG_SETMASK, nullptr, &mask);
  EXPECT_EQ(sigismember(&mask, SIGTERM), 0);
}

}  // namespace
}  // namespace kvist::services
