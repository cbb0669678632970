// kvist sessions: what the server remembers and what it costs in memory.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "services/cli/commands.h"
#include "services/cli/generation_flags.h"

namespace kvist::services {
namespace {

struct SessionsFlags {
  std::string id;
  std::string new_id;
  std::string endpoint;
  std::string output;
  int64_t ttl_seconds = 0;
  std::optional<int64_t> keep_first;
  std::optional<int64_t> keep_last;
  CacheWish cache;
};

// What the manager knows of a session: its record (none for implicit ones) and its blocks (none if
// all were evicted).
struct SessionView {
  std::optional<v1::Session> record;
  std::optional<v1::SessionMemory> memory;

  int64_t tokens() const {
    if (record.has_value()) return record->history_tokens();
    return memory.has_value() ? memory->tokens() : 0;
  }
  std::string phase() const {
    if (record.has_value() && !record->open_turn_id().empty()) return "active";
    if (!memory.has_value()) return "stored";
    if (memory->phase() == v1::PHASE_CLOSED) return "closed";
    return absl::AsciiStrToLower(v1::SessionPhase_Name(memory->phase()));
  }
};

nlohmann::ordered_json WorkersJson(const v1::SessionMemory& memory) {
  auto workers = nlohmann::ordered_json::array();
  for (const v1::SessionMemoryOnWorker& worker : memory.workers()) {
    workers.push_back(
        {{"worker", worker.worker_id()},
         {"named_blocks", worker.named_blocks()},
         {"partial_blocks", worker.partial_blocks()},
         {"reserved_blocks", worker.reserved_blocks()},
         {"shared_bytes", worker.shared_bytes()},
         {"exclusive_bytes", worker.exclusive_bytes()},
         {"confidence", absl::AsciiStrToLower(v1::Confidence_Name(worker.confidence()))}});
  }
  return workers;
}

nlohmann::ordered_json ViewJson(const std::string& id, const SessionView& view) {
  const v1::SessionMemory memory = view.memory.value_or(v1::SessionMemory());
  nlohmann::ordered_json json = {{"session", id},
                                 {"phase", view.phase()},
                                 {"tokens", view.tokens()},
                                 {"blocks", memory.blocks()},
                                 {"cached_tokens", memory.tokens()},
                                 {"shared_bytes", memory.shared_bytes()},
                                 {"exclusive_bytes", memory.exclusive_bytes()},
                                 {"implicit", !view.record.has_value()},
                                 {"workers", WorkersJson(memory)}};
  if (view.record.has_value()) {
    const v1::CacheParams& cache = view.record->cache();
    json["cache"] = {{"allocation", AllocationName(cache.allocation())},
                     {"window_tokens", cache.attention().window_tokens()},
                     {"sink_tokens", cache.attention().sink_tokens()},
                     {"kv_format", cache.kv_format()},
                     {"offload", OffloadName(cache.offload())}};
    json["turns"] = view.record->turns();
    json["version"] = view.record->version();
    json["created_unix_ms"] = view.record->created_unix_ms();
    json["last_used_unix_ms"] = view.record->last_used_unix_ms();
    json["expires_unix_ms"] = view.record->expires_unix_ms();
  }
  return json;
}

void PrintViews(const std::map<std::string, SessionView>& views) {
  std::vector<std::vector<std::string>> rows = {
      {"SESSION", "PHASE", "TURNS", "TOKENS", "BLOCKS", "SHARED", "EXCLUSIVE", "WORKERS"}};
  for (const auto& [id, view] : views) {
    const v1::SessionMemory memory = view.memory.value_or(v1::SessionMemory());
    std::string workers;
    for (const auto& worker : memory.workers()) {
      absl::StrAppend(&workers, workers.empty() ? "" : ",", worker.worker_id());
    }
    rows.push_back({id, view.phase(),
                    view.record.has_value() ? absl::StrCat(view.record->turns()) : "implicit",
                    absl::StrCat(view.tokens()), absl::StrCat(memory.blocks()),
                    HumanBytes(memory.shared_bytes()), HumanBytes(memory.exclusive_bytes()),
                    workers.empty() ? "-" : workers});
  }
  PrintTable(rows);
}

absl::StatusOr<std::map<std::string, SessionView>> AllViews(Client& client) {
  std::map<std::string, SessionView> views;
  KVIST_ASSIGN_OR_RETURN(auto records, client.ListSessions());
  for (v1::Session& record : records) views[record.id()].record = std::move(record);
  KVIST_ASSIGN_OR_RETURN(auto memories, client.SessionMemoryOf(""));
  for (v1::SessionMemory& memory : memories) views[memory.session_id()].memory = std::move(memory);
  return views;
}

absl::StatusOr<std::map<std::string, SessionView>> OneView(Client& client, const std::string& id) {
  SessionView view;
  v1::GetSessionRequest get;
  get.set_id(id);
  auto record = client.GetSession(get);
  if (record.ok()) {
    view.record = *std::move(record);
  } else if (!absl::IsNotFound(record.status())) {
    return record.status();
  }
  auto memory = client.SessionMemoryOf(id);
  if (memory.ok()) {
    for (v1::SessionMemory& row : *memory) {
      if (row.session_id() == id) view.memory = std::move(row);
    }
  } else if (!absl::IsNotFound(memory.status())) {
    return memory.status();
  }
  if (!view.record.has_value() && !view.memory.has_value()) {
    return absl::NotFoundError(absl::StrCat("there is no session ", id));
  }
  return std::map<std::string, SessionView>{{id, std::move(view)}};
}

int RunShow(const SessionsFlags& flags) {
  int exit_code = kExitOk;
  const auto client = ConnectOrReport(flags.endpoint, &exit_code);
  if (client == nullptr) return exit_code;
  const auto views = flags.id.empty() ? AllViews(*client) : OneView(*client, flags.id);
  if (!views.ok()) return ReportError(views.status());
  if (flags.output != "json") {
    PrintViews(*views);
    return kExitOk;
  }
  if (!flags.id.empty()) {
    PrintJson(ViewJson(flags.id, views->begin()->second));
    return kExitOk;
  }
  auto rows = nlohmann::ordered_json::array();
  for (const auto& [id, view] : *views) rows.push_back(ViewJson(id, view));
  PrintJson({{"sessions", std::move(rows)}});
  return kExitOk;
}

int PrintSession(const SessionsFlags& flags, const absl::StatusOr<v1::Session>& session) {
  if (!session.ok()) return ReportError(session.status());
  if (flags.output == "json") {
    PrintJson({{"session", session->id()},
               {"version", session->version()},
               {"tokens", session->history_tokens()},
               {"turns", session->turns()}});
  } else {
    std::printf("%s\n", session->id().c_str());
  }
  return kExitOk;
}

int RunCreate(const SessionsFlags& flags) {
  v1::CreateSessionRequest request;
  request.set_id(flags.id);
  if (flags.ttl_seconds != 0) request.set_ttl_seconds(flags.ttl_seconds);
  int exit_code = kExitOk;
  const auto client = ConnectOrReport(flags.endpoint, &exit_code);
  if (client == nullptr) return exit_code;
  auto cache = AskedCache(flags.cache, "", *client);
  if (!cache.ok()) return ReportError(cache.status());
  *request.mutable_cache() = *std::move(cache);
  return PrintSession(flags, client->CreateSession(request));
}

int RunReset(const SessionsFlags& flags) {
  int exit_code = kExitOk;
  const auto client = ConnectOrReport(flags.endpoint, &exit_code);
  if (client == nullptr) return exit_code;
  v1::ResetSessionRequest request;
  request.set_id(flags.id);
  return PrintSession(flags, client->ResetSession(request));
}

int RunTruncate(const SessionsFlags& flags) {
  int exit_code = kExitOk;
  const auto client = ConnectOrReport(flags.endpoint, &exit_code);
  if (client == nullptr) return exit_code;
  v1::TruncateSessionRequest request;
  request.set_id(flags.id);
  if (flags.keep_first.has_value()) request.set_keep_first_tokens(*flags.keep_first);
  if (flags.keep_last.has_value()) request.set_keep_last_tokens(*flags.keep_last);
  return PrintSession(flags, client->TruncateSession(request));
}

int RunFork(const SessionsFlags& flags) {
  int exit_code = kExitOk;
  const auto client = ConnectOrReport(flags.endpoint, &exit_code);
  if (client == nullptr) return exit_code;
  v1::ForkSessionRequest request;
  request.set_id(flags.id);
  request.set_new_id(flags.new_id);
  return PrintSession(flags, client->ForkSession(request));
}

int RunDelete(const SessionsFlags& flags) {
  int exit_code = kExitOk;
  const auto client = ConnectOrReport(flags.endpoint, &exit_code);
  if (client == nullptr) return exit_code;
  if (const absl::Status status = client->DeleteSession(flags.id); !status.ok()) {
    return ReportError(status);
  }
  if (flags.output == "json") PrintJson({{"session", flags.id}, {"deleted", true}});
  return kExitOk;
}

// A sub-action with its own flags.
CLI::App* AddAction(CLI::App& parent, const char* name, const char* help, const char* examples,
                    Run* run, const std::shared_ptr<SessionsFlags>& flags,
                    int (*body)(const SessionsFlags&)) {
  CLI::App* action = AddCommand(parent, name, help, examples, run, flags, body);
  AddEndpointFlag(action, &flags->endpoint);
  AddOutputFlag(action, &flags->output);
  return action;
}

}  // namespace

void AddSessions(CLI::App& app, Run* run) {
  auto flags = std::make_shared<SessionsFlags>();
  CLI::App* command =
      app.add_subcommand("sessions", "List sessions, or show one: tokens, blocks, bytes, phase.");
  command->footer(
      "Examples:\n"
      "  kvist sessions\n"
      "  kvist sessions kitchen --output json\n"
      "  kvist sessions create kitchen\n"
      "  kvist sessions delete kitchen\n"
      "  kvist sessions export kitchen kitchen.kvist\n"
      "SHARED counts blocks that another session holds too.\n"
      "Sessions without turns are implicit: requests that named none.");
  command->add_option("id", flags->id, "one session; none: all");
  AddEndpointFlag(command, &flags->endpoint);
  AddOutputFlag(command, &flags->output);
  command->require_subcommand(0, 1);
  command->callback([=] {
    if (command->get_subcommands().empty()) *run = [=] { return RunShow(*flags); };
  });
  const auto create_flags = std::make_shared<SessionsFlags>();
  CLI::App* create = AddAction(*command, "create", "Make a session.",
                               "  kvist sessions create kitchen --ttl-seconds 3600\n"
                               "  kvist sessions create kitchen --cache static\n"
                               "The cache flags hold for all its turns that do not say others.\n",
                               run, create_flags, &RunCreate);
  create->add_option("id", create_flags->id, "its name; none: drawn");
  create->add_option("--ttl-seconds", create_flags->ttl_seconds,
                     "since its last use; default 7 days");
  AddCacheFlags(create, &create_flags->cache);
  const auto get_flags = std::make_shared<SessionsFlags>();
  AddAction(*command, "get", "Show one session.", "  kvist sessions get kitchen\n", run, get_flags,
            &RunShow)
      ->add_option("id", get_flags->id, "the session")
      ->required();
  const auto reset_flags = std::make_shared<SessionsFlags>();
  AddAction(*command, "reset", "Forget a session's history.", "  kvist sessions reset kitchen\n",
            run, reset_flags, &RunReset)
      ->add_option("id", reset_flags->id, "the session")
      ->required();
  const auto truncate_flags = std::make_shared<SessionsFlags>();
  CLI::App* truncate = AddAction(*command, "truncate",
                                 "Keep only the end, or the beginning, of a session's history.",
                                 "  kvist sessions truncate kitchen --keep-last 100\n"
                                 "  kvist sessions truncate kitchen --keep-first 100\n",
                                 run, truncate_flags, &RunTruncate);
  truncate->add_option("id", truncate_flags->id, "the session")->required();
  CLI::Option_group* const kept = truncate->add_option_group("kept");
  kept->add_option("--keep-last", truncate_flags->keep_last,
                   "tokens; the next turn computes them anew at their new positions");
  kept->add_option("--keep-first", truncate_flags->keep_first, "tokens");
  kept->require_option(1);
  const auto fork_flags = std::make_shared<SessionsFlags>();
  CLI::App* fork = AddAction(*command, "fork", "Make a session that goes on from where another is.",
                             "  kvist sessions fork kitchen\n"
                             "  kvist sessions fork kitchen kitchen-2\n"
                             "Both share the blocks of their common history.\n",
                             run, fork_flags, &RunFork);
  fork->add_option("id", fork_flags->id, "the session")->required();
  fork->add_option("new", fork_flags->new_id, "the new one's name; none: drawn");
  AddSessionsFiles(*command, run);
  const auto delete_flags = std::make_shared<SessionsFlags>();
  AddAction(*command, "delete", "Erase a session.", "  kvist sessions delete kitchen\n", run,
            delete_flags, &RunDelete)
      ->add_option("id", delete_flags->id, "the session")
      ->required();
}

}  // namespace kvist::services
