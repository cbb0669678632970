#include "services/cli/machine_facts.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string_view>

#include "worker/backend/cpu_backend.h"

namespace kvist::services {
namespace {

constexpr std::string_view kInstructionSets[] = {
    "sse4_2",   "avx",      "f16c",     "fma",         "avx2",        "avx_vnni", "avx512f",
    "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16", "amx_int8"};

// "model name : X" -> X; empty for another key.
std::string ValueOf(const std::string& line, std::string_view key) {
  if (!line.starts_with(key)) return "";
  const size_t colon = line.find(':');
  if (colon == std::string::npos) return "";
  const size_t value = line.find_first_not_of(" \t", colon + 1);
  return value == std::string::npos ? "" : line.substr(value);
}

void ReadCpuInfo(const std::string& path, MachineFacts* facts) {
  std::ifstream file(path);
  std::string line;
  std::string flags;
  while (std::getline(file, line)) {
    if (line.starts_with("processor")) ++facts->online_cores;
    if (const std::string name = ValueOf(line, "model name"); !name.empty()) facts->cpu = name;
    if (flags.empty()) flags = ValueOf(line, "flags");
  }
  std::istringstream words(flags);
  const std::vector<std::string> has{std::istream_iterator<std::string>(words), {}};
  for (const std::string_view name : kInstructionSets) {
    if (std::find(has.begin(), has.end(), name) != has.end()) {
      facts->instruction_sets.emplace_back(name);
    }
  }
}

// "always [madvise] never" -> "madvise"
std::string ChosenOf(const std::string& line) {
  const size_t open = line.find('[');
  const size_t close = line.find(']');
  if (open == std::string::npos || close == std::string::npos || close < open) return "unknown";
  return line.substr(open + 1, close - open - 1);
}

// "200000 100000" -> 2; "max 100000" -> 0.
double QuotaCores(const std::string& path) {
  std::ifstream file(path);
  double quota = 0;
  double period = 0;
  if (!(file >> quota >> period) || period <= 0) return 0;
  return quota / period;
}

int64_t TotalMemoryBytes(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    std::istringstream value(ValueOf(line, "MemTotal"));
    int64_t kilobytes = 0;
    if (value >> kilobytes) return kilobytes * 1024;
  }
  return 0;
}

}  // namespace

MachineFacts ReadMachineFacts(const std::string& root) {
  MachineFacts facts;
  ReadCpuInfo(root + "/proc/cpuinfo", &facts);
  facts.usable_cores = worker::UsableCores();
  facts.quota_cores = QuotaCores(root + "/sys/fs/cgroup/cpu.max");
  std::ifstream(root + "/proc/loadavg") >> facts.load_cores;
  facts.memory_bytes = TotalMemoryBytes(root + "/proc/meminfo");
  std::ifstream setting(root + "/sys/kernel/mm/transparent_hugepage/enabled");
  std::string line;
  if (std::getline(setting, line)) facts.huge_pages = ChosenOf(line);
  return facts;
}

}  // namespace kvist::services
