// kvist bench: what can be measured in this process.
#include <CLI/CLI.hpp>

#include "services/cli/commands.h"

namespace kvist::services {

void AddBench(CLI::App& app, Run* run) {
  CLI::App* bench = app.add_subcommand("bench", "Measure.");
  bench->require_subcommand(1);
  bench->footer(
      "Examples:\n  kvist bench engine --model smollm2 --threads 2\n"
      "  kvist bench kv-cache --model smollm2 --runs 3 --new 1,10,100\n");
  AddBenchEngine(*bench, run);
  AddBenchKvCache(*bench, run);
}

}  // namespace kvist::services
