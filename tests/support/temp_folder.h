// A folder for one test, gone with its end.
#ifndef KVIST_TESTS_SUPPORT_TEMP_FOLDER_H_
#define KVIST_TESTS_SUPPORT_TEMP_FOLDER_H_

#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <string>
#include <system_error>

#include "gtest/gtest.h"

namespace kvist {

// Owns the folder, which is made by whoever writes to it. Thread-compatible.
class TempFolder {
 public:
  TempFolder() {
    static std::atomic<int> count{0};
    path_ =
        ::testing::TempDir() + "kvist_" + std::to_string(getpid()) + "_" + std::to_string(++count);
  }
  ~TempFolder() {
    std::error_code error;
    std::filesystem::remove_all(path_, error);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace kvist

#endif  // KVIST_TESTS_SUPPORT_TEMP_FOLDER_H_
