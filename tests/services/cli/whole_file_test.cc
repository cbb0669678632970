#include "services/cli/whole_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

namespace kvist::services {
namespace {

using ::testing::HasSubstr;

class WholeFileTest : public ::testing::Test {
 protected:
  WholeFileTest()
      : folder_(std::filesystem::path(::testing::TempDir()) /
                ("whole-file-" + std::to_string(getpid()))) {
    std::filesystem::create_directories(folder_);
  }
  ~WholeFileTest() override { std::filesystem::remove_all(folder_); }

  std::string Path(const std::string& name) const { return (folder_ / name).string(); }
  static std::string Contents(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::stringstream contents;
    contents << file.rdbuf();
    return contents.str();
  }
  int64_t Entries() const {
    return std::distance(std::filesystem::directory_iterator(folder_),
                         std::filesystem::directory_iterator());
  }

  const std::filesystem::path folder_;
};

TEST_F(WholeFileTest, AppearsWithItsCommitAndForItsOwnerAlone) {
  const auto file = WholeFile::Create(Path("a"));
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_TRUE((*file)->Write("one ").ok());
  ASSERT_TRUE((*file)->Write("two").ok());
  EXPECT_FALSE(std::filesystem::exists(Path("a")));
  ASSERT_TRUE((*file)->Commit().ok());
  EXPECT_EQ(Contents(Path("a")), "one two");
  EXPECT_EQ(Entries(), 1);
  struct stat found {};
  ASSERT_EQ(stat(Path("a").c_str(), &found), 0);
  EXPECT_EQ(found.st_mode & 0777, 0600u);
}

TEST_F(WholeFileTest, OneOfTheNameIsReplacedWholeOrNotAtAll) {
  std::ofstream(Path("a")) << "old";
  {
    const auto file = WholeFile::Create(Path("a"));
    ASSERT_TRUE(file.ok());
    ASSERT_TRUE((*file)->Write("half").ok());
    EXPECT_EQ(Contents(Path("a")), "old");
  }
  EXPECT_EQ(Contents(Path("a")), "old");
  EXPECT_EQ(Entries(), 1);
  const auto file = WholeFile::Create(Path("a"));
  ASSERT_TRUE(file.ok());
  ASSERT_TRUE((*file)->Write("new").ok());
  ASSERT_TRUE((*file)->Commit().ok());
  EXPECT_EQ(Contents(Path("a")), "new");
}

TEST_F(WholeFileTest, PlacesThatCannotBeWrittenAreNamed) {
  for (const std::string& path :
       {Path("missing/a"), Path(""), folder_.string(), std::string("/dev/null")}) {
    const absl::Status status = WholeFile::Create(path).status();
    EXPECT_FALSE(status.ok()) << path;
    EXPECT_THAT(std::string(status.message()), HasSubstr(path));
  }
  EXPECT_EQ(WholeFile::Create(Path("missing/a")).status().code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(WholeFile::Create("").ok());
}

}  // namespace
}  // namespace kvist::services
