#include "services/cli/machine_facts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace kvist::services {
namespace {

using ::testing::ElementsAre;

// A root folder with the files of a machine.
class MachineFactsTest : public ::testing::Test {
 protected:
  ~MachineFactsTest() override {
    std::error_code error;
    std::filesystem::remove_all(root_, error);
  }
  void Write(const std::string& path, const std::string& content) {
    const std::filesystem::path file = root_ / path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << content;
  }
  MachineFacts Read() { return ReadMachineFacts(root_.string()); }

  const std::filesystem::path root_ =
      std::filesystem::path(::testing::TempDir()) / ("kvist-facts-" + std::to_string(getpid()));
};

TEST_F(MachineFactsTest, AreReadFromTheSystemsFiles) {
  Write("proc/cpuinfo",
        "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t\t: fpu avx2 fma sse4_2 avx\n\n"
        "processor\t: 1\nmodel name\t: Some CPU @ 2 GHz\nflags\t\t: fpu avx2 fma sse4_2 avx\n\n");
  Write("proc/loadavg", "1.25 0.80 0.50 2/345 6789\n");
  Write("proc/meminfo", "MemTotal:       2048 kB\nMemFree:        1024 kB\n");
  Write("sys/fs/cgroup/cpu.max", "150000 100000\n");
  Write("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n");
  const MachineFacts facts = Read();
  EXPECT_EQ(facts.cpu, "Some CPU @ 2 GHz");
  EXPECT_THAT(facts.instruction_sets, ElementsAre("sse4_2", "avx", "fma", "avx2"));
  EXPECT_EQ(facts.online_cores, 2);
  EXPECT_EQ(facts.quota_cores, 1.5);
  EXPECT_EQ(facts.load_cores, 1.25);
  EXPECT_EQ(facts.memory_bytes, 2048 * 1024);
  EXPECT_EQ(facts.huge_pages, "madvise");
}

TEST_F(MachineFactsTest, WhatIsNotThereIsUnknown) {
  Write("sys/fs/cgroup/cpu.max", "max 100000\n");
  const MachineFacts facts = Read();
  EXPECT_EQ(facts.cpu, "unknown");
  EXPECT_EQ(facts.huge_pages, "unknown");
  EXPECT_EQ(facts.quota_cores, 0);
  EXPECT_EQ(facts.load_cores, 0);
  EXPECT_EQ(facts.memory_bytes, 0);
}

TEST_F(MachineFactsTest, ThisMachineHasCoresAndMemory) {
  const MachineFacts facts = ReadMachineFacts();
  EXPECT_GE(facts.usable_cores, 1);
  EXPECT_GE(facts.online_cores, facts.usable_cores);
  EXPECT_GT(facts.memory_bytes, 0);
}

}  // namespace
}  // namespace kvist::services
