// kvist sessions export and import as scripts use them, between two servers.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "tests/services/cli/cli_server.h"
#include "tests/support/chat_model.h"

namespace kvist::services {
namespace {

using nlohmann::json;
using testing::CliResult;
using testing::CliServer;

std::unique_ptr<CliServer> StartServer(const std::string& name,
                                       const std::string& cluster_secret = "one") {
  auto server = std::make_unique<CliServer>(name);
  const std::string model = (server->folder() / "tiny.gguf").string();
  EXPECT_TRUE(testing::WriteChatModel(model, 1024));
  server->Start({"--model", model, "--kv-memory", "16MB", "--cluster-secret", cluster_secret});
  return server;
}

class SessionsFileTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { server_ = StartServer("files"); }
  static void TearDownTestSuite() {
    server_->Stop();
    server_.reset();
  }

  static std::string Path(const std::string& name) { return (server_->folder() / name).string(); }
  static std::string Bytes(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::stringstream contents;
    contents << file.rdbuf();
    return contents.str();
  }
  static json Turn(CliServer& server, const std::string& session, const std::string& text) {
    return server.Json(
        {"generate", text, "--session", session, "--max-new-tokens", "30", "--ignore-eos"});
  }
  // A session of one turn and its file.
  static std::string SaveSession(const std::string& id) {
    EXPECT_EQ(server_->Kvist({"sessions", "create", id}).exit_code, 0);
    Turn(*server_, id, "The red cat was on the mat");
    const CliResult saved = server_->Kvist({"sessions", "export", id, Path(id)});
    EXPECT_EQ(saved.exit_code, 0) << saved.errors;
    return Path(id);
  }

  static std::unique_ptr<CliServer> server_;
};
std::unique_ptr<CliServer> SessionsFileTest::server_;

TEST_F(SessionsFileTest, AnotherServerAnswersAsTheFirstAndFindsAllCached) {
  const std::string file = SaveSession("kitchen");
  const json saved = server_->Json({"sessions", "export", "kitchen", file});
  for (const char* member :
       {"session", "file", "bytes", "tokens", "blocks", "cached_tokens", "note"}) {
    EXPECT_TRUE(saved.contains(member)) << member;
  }
  EXPECT_EQ(saved["bytes"], std::filesystem::file_size(file));
  EXPECT_EQ(saved["cached_tokens"], saved["tokens"].get<int64_t>() - 1);
  EXPECT_EQ(saved["note"], "");
  // Whole or not at all: nothing else is left beside it.
  for (const auto& entry : std::filesystem::directory_iterator(server_->folder())) {
    EXPECT_EQ(entry.path().string().find(".part-"), std::string::npos) << entry.path();
  }

  const auto other = StartServer("files-other");
  const json restored = other->Json({"sessions", "import", file, "--id", "pantry"});
  for (const char* member :
       {"session", "version", "tokens", "turns", "blocks", "cached_tokens", "note"}) {
    EXPECT_TRUE(restored.contains(member)) << member;
  }
  EXPECT_EQ(restored["session"], "pantry");
  EXPECT_EQ(restored["tokens"], saved["tokens"]);
  EXPECT_EQ(restored["blocks"], saved["blocks"]);
  EXPECT_EQ(restored["cached_tokens"], saved["cached_tokens"]);
  EXPECT_EQ(other->Json({"sessions", "get", "pantry"})["turns"], 1);
  const json stayed = Turn(*server_, "kitchen", " and");
  const json moved = Turn(*other, "pantry", " and");
  EXPECT_EQ(moved["token_ids"], stayed["token_ids"]);
  EXPECT_EQ(moved["text"], stayed["text"]);
  EXPECT_EQ(moved["cached_tokens"], saved["cached_tokens"]);
  other->Stop();
}

TEST_F(SessionsFileTest, AServerOfAnotherSecretTakesTheHistoryAloneAndSaysSo) {
  const std::string file = SaveSession("secretive");
  const auto other = StartServer("files-secret", "another");
  const CliResult restored = other->Kvist({"sessions", "import", file});
  EXPECT_EQ(restored.exit_code, 0) << restored.errors;
  EXPECT_NE(restored.errors.find("cluster secret"), std::string::npos) << restored.errors;
  EXPECT_NE(restored.errors.find("anew"), std::string::npos) << restored.errors;
  const json stayed = Turn(*server_, "secretive", " and");
  const json moved = Turn(*other, "secretive", " and");
  EXPECT_EQ(moved["token_ids"], stayed["token_ids"]);
  EXPECT_EQ(moved["cached_tokens"], 0);
  other->Stop();
}

TEST_F(SessionsFileTest, FilesThatAreNoneOrDamagedAreNamedWithWhatIsWrong) {
  const std::string file = SaveSession("sound");
  const std::string bytes = Bytes(file);
  const auto refused = [&](const std::string& contents, const std::string& why) {
    std::ofstream(Path("bad"), std::ios::binary) << contents;
    const CliResult result = server_->Kvist({"sessions", "import", Path("bad"), "--id", "bad"});
    EXPECT_EQ(result.exit_code, 2) << result.errors;
    EXPECT_NE(result.errors.find(Path("bad")), std::string::npos) << result.errors;
    EXPECT_NE(result.errors.find(why), std::string::npos) << result.errors;
  };
  refused("", "cut off");
  refused("this is a text and no file of a session", "no session file");
  refused(bytes.substr(0, bytes.size() / 2), "cut off");
  refused(bytes + "x", "behind its end");
  std::string damaged = bytes;
  damaged[bytes.size() / 2] ^= 1;
  refused(damaged, "checksum");
  EXPECT_EQ(server_->Kvist({"sessions", "import", Path("nowhere")}).exit_code, 2);
  EXPECT_EQ(server_->Kvist({"sessions", "get", "bad"}).exit_code, 4);
  // A session that is there is not touched.
  const CliResult taken = server_->Kvist({"sessions", "import", file});
  EXPECT_EQ(taken.exit_code, 4) << taken.errors;
  EXPECT_NE(taken.errors.find("sound"), std::string::npos) << taken.errors;
}

TEST_F(SessionsFileTest, WhatCannotBeSavedLeavesNoFile) {
  const CliResult unknown = server_->Kvist({"sessions", "export", "nobody", Path("nobody")});
  EXPECT_EQ(unknown.exit_code, 4) << unknown.errors;
  EXPECT_FALSE(std::filesystem::exists(Path("nobody")));
  EXPECT_EQ(server_->Kvist({"sessions", "export", "sound", Path("none/file")}).exit_code, 2);
  EXPECT_EQ(server_->Kvist({"sessions", "export", "sound"}).exit_code, 2);
  for (const auto& entry : std::filesystem::directory_iterator(server_->folder())) {
    EXPECT_EQ(entry.path().string().find(".part-"), std::string::npos) << entry.path();
  }
}

}  // namespace
}  // namespace kvist::services
