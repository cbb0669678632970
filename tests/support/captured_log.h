// What the process logs while a test runs.
#ifndef KVIST_TESTS_SUPPORT_CAPTURED_LOG_H_
#define KVIST_TESTS_SUPPORT_CAPTURED_LOG_H_

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/mutex.h"
#include "spdlog/sinks/sink.h"
#include "spdlog/spdlog.h"

namespace kvist {

// Takes the log's lines from its construction to its destruction. Thread-safe; one at a time.
class CapturedLog {
 public:
  CapturedLog() : sink_(std::make_shared<Sink>()), before_(spdlog::default_logger()) {
    spdlog::set_default_logger(std::make_shared<spdlog::logger>("captured", sink_));
  }
  ~CapturedLog() { spdlog::set_default_logger(before_); }
  CapturedLog(const CapturedLog&) = delete;
  CapturedLog& operator=(const CapturedLog&) = delete;

  // Lines that contain `text`.
  std::vector<std::string> Lines(std::string_view text) const {
    MutexLock lock(sink_->mutex);
    std::vector<std::string> found;
    for (const std::string& line : sink_->lines) {
      if (line.find(text) != std::string::npos) found.push_back(line);
    }
    return found;
  }

 private:
  struct Sink final : spdlog::sinks::sink {
    void log(const spdlog::details::log_msg& message) override {
      MutexLock lock(mutex);
      lines.emplace_back(message.payload.data(), message.payload.size());
    }
    void flush() override {}
    void set_pattern(const std::string&) override {}
    void set_formatter(std::unique_ptr<spdlog::formatter>) override {}

    Mutex mutex;
    std::vector<std::string> lines ABSL_GUARDED_BY(mutex);
  };

  const std::shared_ptr<Sink> sink_;
  const std::shared_ptr<spdlog::logger> before_;
};

}  // namespace kvist

#endif  // KVIST_TESTS_SUPPORT_CAPTURED_LOG_H_
