// A server with a disk for its sessions, as a person would run it.
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "tests/services/cli/cli_server.h"
#include "tests/support/chat_model.h"

namespace kvist::services {
namespace {

using nlohmann::json;

TEST(CliOffloadTest, ASessionsBlocksComeBackAfterTheServerWasRestarted) {
  testing::CliServer server("offload");
  const std::string model = (server.folder() / "tiny.gguf").string();
  ASSERT_TRUE(testing::WriteChatModel(model, 512));
  const std::string disk = (server.folder() / "disk").string();
  const std::vector<std::string> flags = {"--model",         model,
                                          "--kv-memory",     "8MB",
                                          "--data-dir",      (server.folder() / "state").string(),
                                          "--offload-dir",   disk,
                                          "--offload-bytes", "16MB"};
  server.Start(flags);
  EXPECT_EQ(server.Json({"models"})["models"][0]["offload_tiers"], json({"disk"}));
  EXPECT_EQ(server.Kvist({"sessions", "create", "s", "--cache", "offloaded"}).exit_code, 0);
  EXPECT_EQ(server.Json({"sessions", "s"})["cache"]["offload"], "disk");
  const json first = server.Json({"generate", "The red cat was on the table, and", "--session", "s",
                                  "--max-new-tokens", "60", "--ignore-eos"});
  EXPECT_EQ(first["cached_tokens"], 0);
  server.Stop();
  EXPECT_TRUE(std::filesystem::exists(disk + "/worker-1/pool-0.slab"));
  server.Start(flags);
  const json second = server.Json({"generate", " so", "--session", "s", "--max-new-tokens", "5"});
  EXPECT_GE(second["cached_tokens"], 48) << second;
  const testing::CliResult host =
      server.Kvist({"generate", "x", "--offload", "host", "--max-new-tokens", "1"});
  EXPECT_EQ(host.exit_code, 4);
  EXPECT_NE(host.errors.find("--offload"), std::string::npos) << host.errors;
  server.Stop();
}

TEST(CliOffloadTest, AServerWithoutADiskSaysSo) {
  testing::CliServer server("no-offload");
  const std::string model = (server.folder() / "tiny.gguf").string();
  ASSERT_TRUE(testing::WriteChatModel(model, 512));
  server.Start({"--model", model, "--kv-memory", "8MB"});
  const testing::CliResult refused = server.Kvist({"generate", "x", "--cache", "offloaded"});
  EXPECT_EQ(refused.exit_code, 4);
  EXPECT_NE(refused.errors.find("--offload-dir"), std::string::npos) << refused.errors;
  server.Stop();
}

}  // namespace
}  // namespace kvist::services
