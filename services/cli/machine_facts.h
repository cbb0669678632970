// What the system says of this machine, without measuring.
#ifndef KVIST_SERVICES_CLI_MACHINE_FACTS_H_
#define KVIST_SERVICES_CLI_MACHINE_FACTS_H_

#include <cstdint>
#include <string>
#include <vector>

namespace kvist::services {

struct MachineFacts {
  std::string cpu = "unknown";
  // Those that kernels use or could, as /proc/cpuinfo names them, oldest first.
  std::vector<std::string> instruction_sets;
  int online_cores = 0;
  int usable_cores = 0;                // by this process's affinity
  double quota_cores = 0;              // that the control group grants; 0: no limit
  double load_cores = 0;               // cores kept busy over the last minute, by anybody
  int64_t memory_bytes = 0;            // of the machine
  std::string huge_pages = "unknown";  // transparent ones: "always", "madvise" or "never"
};

// What cannot be read stays as it is above. `root` is put before /proc and /sys: empty but in
// tests.
MachineFacts ReadMachineFacts(const std::string& root = "");

}  // namespace kvist::services

#endif  // KVIST_SERVICES_CLI_MACHINE_FACTS_H_
