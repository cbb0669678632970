// The subcommands. Each function adds one to the app; the chosen one sets `*run`.
#ifndef KVIST_SERVICES_CLI_COMMANDS_H_
#define KVIST_SERVICES_CLI_COMMANDS_H_

#include <CLI/App.hpp>

#include "services/cli/command.h"

namespace kvist::services {

void AddServe(CLI::App& app, Run* run);
void AddFrontend(CLI::App& app, Run* run);
void AddCacheManager(CLI::App& app, Run* run);
void AddWorker(CLI::App& app, Run* run);
void AddGenerate(CLI::App& app, Run* run);
void AddChat(CLI::App& app, Run* run);
void AddSessions(CLI::App& app, Run* run);
void AddSessionsFiles(CLI::App& sessions, Run* run);
void AddBlocks(CLI::App& app, Run* run);
void AddModels(CLI::App& app, Run* run);
void AddTokenize(CLI::App& app, Run* run);
void AddScore(CLI::App& app, Run* run);
void AddBench(CLI::App& app, Run* run);
void AddBenchEngine(CLI::App& bench, Run* run);
void AddBenchKvCache(CLI::App& bench, Run* run);
void AddDoctor(CLI::App& app, Run* run);
void AddCompletion(CLI::App& app, Run* run);
void AddVersion(CLI::App& app, Run* run);

// All of them. Wrong flags print help or an error. Returns the exit code.
int RunCommandLine(int argc, char** argv);

}  // namespace kvist::services

#endif  // KVIST_SERVICES_CLI_COMMANDS_H_
