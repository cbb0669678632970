// A child process at a terminal of its own, as a person uses it.
#ifndef KVIST_TESTS_SUPPORT_TERMINAL_H_
#define KVIST_TESTS_SUPPORT_TERMINAL_H_

#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <string>
#include <string_view>
#include <vector>

namespace kvist::testing {

// One child whose standard input, output and error are a pseudo-terminal; killed at the end if it
// still runs. Single-threaded.
class Terminal {
 public:
  static constexpr char kCtrlC = '\x03';
  static constexpr char kCtrlD = '\x04';
  static constexpr char kCtrlU = '\x15';

  // `environment`: NAME=VALUE put before this process's.
  Terminal(std::vector<std::string> command, const std::vector<std::string>& environment) {
    // All that allocates is done before the fork.
    std::vector<char*> argv;
    for (std::string& part : command) argv.push_back(part.data());
    argv.push_back(nullptr);
    std::vector<std::string> all = environment;
    for (char** variable = environ; *variable != nullptr; ++variable) all.emplace_back(*variable);
    std::vector<char*> envp;
    for (std::string& variable : all) envp.push_back(variable.data());
    envp.push_back(nullptr);
    pid_ = forkpty(&terminal_, nullptr, nullptr, nullptr);
    if (pid_ == 0) {
      execve(argv[0], argv.data(), envp.data());
      _exit(127);
    }
  }
  ~Terminal() {
    if (pid_ > 0 && !waited_) {
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
    if (terminal_ >= 0) close(terminal_);
  }
  Terminal(const Terminal&) = delete;
  Terminal& operator=(const Terminal&) = delete;

  void Type(std::string_view text) const {
    while (!text.empty()) {
      const ssize_t count = write(terminal_, text.data(), text.size());
      if (count <= 0) return;
      text.remove_prefix(static_cast<size_t>(count));
    }
  }

  // Reads until `text` comes, from where the last wait ended. False: the output ended or `seconds`
  // passed before.
  bool WaitFor(std::string_view text, int seconds) {
    return WaitUntil(seconds, [&] {
      const size_t at = output_.find(text, seen_);
      if (at != std::string::npos) seen_ = at + text.size();
      return at != std::string::npos;
    });
  }
  // Reads until so many bytes have come since where the last wait ended.
  bool WaitForBytes(size_t bytes, int seconds) {
    return WaitUntil(seconds, [&] {
      const bool came = output_.size() >= seen_ + bytes;
      if (came) seen_ += bytes;
      return came;
    });
  }
  // Reads to the end and waits. As Subprocess::WaitForExit.
  int WaitForExit(int seconds) {
    WaitUntil(seconds, [] { return false; });
    if (pid_ <= 0 || open_) return -1;
    int status = 0;
    if (waitpid(pid_, &status, 0) != pid_) return -1;
    waited_ = true;
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  }

  const std::string& output() const { return output_; }

 private:
  template <typename Condition>
  bool WaitUntil(int seconds, Condition condition) {
    const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
    while (!condition()) {
      if (!open_ || std::chrono::steady_clock::now() >= until) return false;
      pollfd ready{terminal_, POLLIN, 0};
      if (poll(&ready, 1, 100) <= 0) continue;
      char chunk[4096];
      const ssize_t count = read(terminal_, chunk, sizeof(chunk));  // EIO: the child has gone
      if (count > 0) output_.append(chunk, static_cast<size_t>(count));
      open_ = count > 0;
    }
    return true;
  }

  pid_t pid_ = -1;
  bool waited_ = false;
  int terminal_ = -1;
  bool open_ = true;
  std::string output_;
  size_t seen_ = 0;
};

}  // namespace kvist::testing

#endif  // KVIST_TESTS_SUPPORT_TERMINAL_H_
