#include <CLI/CLI.hpp>
#include <cstdio>

#include "common/base/logging.h"
#include "services/cli/commands.h"

namespace kvist::services {
namespace {

constexpr char kFooter[] =
    "Examples:\n"
    "  kvist serve --model smollm2\n"
    "  kvist chat\n"
    "  kvist generate \"The red cat was\" --max-new-tokens 50\n"
    "\n"
    "Exit status: 0 done, 1 failed, 2 wrong flags or file, 3 nobody answers, 4 refused by the "
    "server,\n"
    "5 out of time, 130 interrupted.\n"
    "kvist COMMAND --help tells more of each command. Every flag of the form [KVIST_...] can be "
    "set by\n"
    "that environment variable.";

}  // namespace

int RunCommandLine(int argc, char** argv) {
  CLI::App app{"Kvist serves large language models to conversations.", "kvist"};
  app.require_subcommand(1);
  app.footer(kFooter);
  std::string log_level = "info";
  app.add_option("--log-level", log_level, "debug, info, warning, error or off")
      ->envname("KVIST_LOG_LEVEL")
      ->capture_default_str();
  app.fallthrough();  // --log-level after the subcommand as well
  Run run;
  AddServe(app, &run);
  AddFrontend(app, &run);
  AddCacheManager(app, &run);
  AddWorker(app, &run);
  AddGenerate(app, &run);
  AddChat(app, &run);
  AddSessions(app, &run);
  AddBlocks(app, &run);
  AddModels(app, &run);
  AddTokenize(app, &run);
  AddScore(app, &run);
  AddBench(app, &run);
  AddDoctor(app, &run);
  AddCompletion(app, &run);
  AddVersion(app, &run);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_name() == "RequiredError" && app.get_subcommands().empty() &&
        !app.remaining().empty()) {
      std::fprintf(stderr, "kvist: error: there is no command %s; kvist --help lists them\n",
                   app.remaining().front().c_str());
      return kExitUsage;
    }
    return app.exit(error) == 0 ? kExitOk : kExitUsage;
  }
  if (const absl::Status status = SetUpLogging(log_level); !status.ok()) {
    return ReportLocalError(status);
  }
  return run ? run() : kExitUsage;
}

}  // namespace kvist::services
