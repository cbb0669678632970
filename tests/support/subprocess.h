// Child processes of a test: their output, their end.
#ifndef KVIST_TESTS_SUPPORT_SUBPROCESS_H_
#define KVIST_TESTS_SUPPORT_SUBPROCESS_H_

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace kvist::testing {

// One child; killed at the end if it still runs. Single-threaded.
class Subprocess {
 public:
  // `environment`: NAME=VALUE, beside or in place of this process's. Standard input is empty, or
  // `input`'s bytes (a pipe's worth).
  explicit Subprocess(std::vector<std::string> command,
                      const std::vector<std::string>& environment = {},
                      const std::string& input = "") {
    int in[2];
    if (pipe2(in, O_CLOEXEC) != 0 || pipe2(out_, O_CLOEXEC) != 0 || pipe2(err_, O_CLOEXEC) != 0) {
      return;
    }
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, in[0], 0);
    posix_spawn_file_actions_adddup2(&actions, out_[1], 1);
    posix_spawn_file_actions_adddup2(&actions, err_[1], 2);
    std::vector<char*> argv;
    for (std::string& part : command) argv.push_back(part.data());
    argv.push_back(nullptr);
    std::vector<std::string> all = environment;
    for (char** variable = environ; *variable != nullptr; ++variable) {
      const std::string_view entry = *variable;
      const std::string_view name = entry.substr(0, entry.find('=') + 1);
      const auto same = [&](const std::string& given) { return given.starts_with(name); };
      if (std::none_of(environment.begin(), environment.end(), same)) all.emplace_back(entry);
    }
    std::vector<char*> envp;
    for (std::string& variable : all) envp.push_back(variable.data());
    envp.push_back(nullptr);
    if (posix_spawnp(&pid_, argv[0], &actions, nullptr, argv.data(), envp.data()) != 0) pid_ = -1;
    posix_spawn_file_actions_destroy(&actions);
    if (!input.empty() && write(in[1], input.data(), input.size()) < 0) pid_ = -1;
    close(in[0]);
    close(in[1]);
    close(out_[1]);
    close(err_[1]);
  }
  ~Subprocess() {
    if (running()) Kill(SIGKILL), Wait();
    close(out_[0]);
    close(err_[0]);
  }
  Subprocess(const Subprocess&) = delete;
  Subprocess& operator=(const Subprocess&) = delete;

  pid_t pid() const { return pid_; }
  bool running() const { return pid_ > 0 && !waited_; }
  void Kill(int signal) const {
    if (running()) kill(pid_, signal);
  }

  // Reads on until standard output has a whole line that begins with `prefix`, and returns it;
  // empty if the output ends or `seconds` pass before.
  std::string WaitForLine(const std::string& prefix, int seconds) {
    const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
    while (true) {
      for (size_t from = 0; from < output_.size();) {
        const size_t end = output_.find('\n', from);
        if (end == std::string::npos) break;
        if (output_.compare(from, prefix.size(), prefix) == 0)
          return output_.substr(from, end - from);
        from = end + 1;
      }
      if (std::chrono::steady_clock::now() >= until || !ReadSome(100)) return {};
    }
  }

  // Reads on until both outputs together have so many bytes. False: they ended or `seconds` passed
  // before.
  bool WaitForBytes(size_t bytes, int seconds) {
    const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
    while (output_.size() + errors_.size() < bytes) {
      if (std::chrono::steady_clock::now() >= until || !ReadSome(100)) return false;
    }
    return true;
  }

  // Reads to the end and waits. The exit status; 128 + the signal's number if one ended it; -1 if
  // it was never started or `seconds` pass (it is killed then).
  int WaitForExit(int seconds) {
    const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
    while (ReadSome(100)) {
      if (std::chrono::steady_clock::now() < until) continue;
      Kill(SIGKILL);
      Wait();
      return -1;
    }
    return Wait();
  }

  const std::string& output() const { return output_; }
  const std::string& errors() const { return errors_; }

 private:
  // false: both outputs have ended.
  bool ReadSome(int timeout_ms) {
    pollfd fds[2] = {{out_open_ ? out_[0] : -1, POLLIN, 0}, {err_open_ ? err_[0] : -1, POLLIN, 0}};
    if (!out_open_ && !err_open_) return false;
    if (poll(fds, 2, timeout_ms) <= 0) return true;
    if (fds[0].revents != 0) out_open_ = Append(out_[0], &output_);
    if (fds[1].revents != 0) err_open_ = Append(err_[0], &errors_);
    return out_open_ || err_open_;
  }
  static bool Append(int fd, std::string* text) {
    char chunk[4096];
    const ssize_t count = read(fd, chunk, sizeof(chunk));
    if (count > 0) text->append(chunk, static_cast<size_t>(count));
    return count > 0;
  }
  int Wait() {
    if (pid_ <= 0) return -1;
    int status = 0;
    if (waitpid(pid_, &status, 0) != pid_) return -1;
    waited_ = true;
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  }

  pid_t pid_ = -1;
  bool waited_ = false;
  int out_[2] = {-1, -1};
  int err_[2] = {-1, -1};
  bool out_open_ = true;
  bool err_open_ = true;
  std::string output_;
  std::string errors_;
};

// The value of NAME=VALUE in a "kvist ready" line.
inline std::string ReadyValue(const std::string& line, const std::string& name) {
  const size_t at = line.find(" " + name + "=");
  if (at == std::string::npos) return {};
  const size_t begin = at + name.size() + 2;
  return line.substr(begin, line.find(' ', begin) - begin);
}

}  // namespace kvist::testing

#endif  // KVIST_TESTS_SUPPORT_SUBPROCESS_H_
