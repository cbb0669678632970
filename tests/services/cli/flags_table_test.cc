// The table of the servers' flags in services/cli/README.md against what the program takes.
#include <gtest/gtest.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "services/cli/commands.h"

namespace kvist::services {
namespace {

// A row without its roles: a flag that is the same in several is one row.
struct Row {
  std::string flag;
  std::string roles;
  std::string rest;
};

std::string RestOf(const CLI::Option& option) {
  const std::string variable = option.get_envname();
  const std::string otherwise = option.get_required() ? "required" : option.get_default_str();
  std::string rest = "| ";
  if (!variable.empty()) rest += "`" + variable + "` ";
  rest += "| ";
  if (!otherwise.empty()) rest += otherwise + " ";
  return rest + "| " + option.get_description() + " |";
}

void AddRows(const CLI::App& command, std::vector<Row>* rows) {
  for (const CLI::Option* option : command.get_options()) {
    if (option == command.get_help_ptr()) continue;
    const Row row{"`" + option->get_name() + "`", command.get_name(), RestOf(*option)};
    const auto same = std::find_if(rows->begin(), rows->end(), [&](const Row& known) {
      return known.flag == row.flag && known.rest == row.rest;
    });
    if (same != rows->end()) {
      same->roles += ", " + row.roles;
    } else {
      rows->push_back(row);
    }
  }
}

TEST(FlagsTableTest, ReadmeHasEveryFlagOfTheServers) {
  CLI::App app;
  services::Run run;
  AddServe(app, &run);
  AddFrontend(app, &run);
  AddCacheManager(app, &run);
  AddWorker(app, &run);
  std::vector<Row> rows;
  for (const CLI::App* command : app.get_subcommands({})) AddRows(*command, &rows);
  ASSERT_GT(rows.size(), 20u);
  std::string table =
      "| flag | of | variable | default | meaning |\n| --- | --- | --- | --- | --- |\n";
  for (const Row& row : rows) table += "| " + row.flag + " | " + row.roles + " " + row.rest + "\n";
  std::ifstream file("services/cli/README.md");  // tests run in the project's root
  std::stringstream readme;
  readme << file.rdbuf();
  EXPECT_NE(readme.str().find("\n" + table + "\n"), std::string::npos) << "the table should be:\n"
                                                                       << table;
}

}  // namespace
}  // namespace kvist::services
