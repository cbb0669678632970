// kvist chat: a conversation in a session; Ctrl-C cancels the answer and not the chat.
#include <editline/readline.h>
#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "common/base/status.h"
#include "services/cli/commands.h"
#include "services/cli/generation_flags.h"
#include "services/cli/interrupt.h"

namespace kvist::services {
namespace {

constexpr int kHistoryLines = 1000;
constexpr std::chrono::milliseconds kTurnEndPatience{5000};
constexpr std::chrono::milliseconds kTurnEndPoll{20};
constexpr char kHelp[] =
    "/reset   forget the conversation\n"
    "/exit    leave (so does Ctrl-D); the session stays\n"
    "/help    this\n"
    "Ctrl-C   cancel the answer\n";

struct ChatFlags {
  std::string endpoint;
  std::string session;
  std::string system;
  GenerationFlags generation;
};

// Reads lines: edited and remembered at a terminal, plain from a pipe. One at a time exists
// (libedit has one state).
class LineReader {
 public:
  LineReader() : terminal_(isatty(STDIN_FILENO) != 0) {
    if (!terminal_) return;
    rl_initialize();
    stifle_history(kHistoryLines);
    history_file_ = HistoryFile();
    if (!history_file_.empty()) read_history(history_file_.c_str());
  }
  ~LineReader() {
    if (terminal_ && !history_file_.empty()) write_history(history_file_.c_str());
  }
  LineReader(const LineReader&) = delete;
  LineReader& operator=(const LineReader&) = delete;

  bool terminal() const { return terminal_; }

  // nullopt: the end.
  std::optional<std::string> Next() {
    std::string line;
    if (!terminal_) {
      if (!std::getline(std::cin, line)) return std::nullopt;
      return line;
    }
    char* typed = readline("> ");
    if (typed == nullptr) return std::nullopt;
    line = typed;
    std::free(typed);
    if (!line.empty()) add_history(line.c_str());
    return line;
  }

 private:
  // Empty where there is no home.
  static std::string HistoryFile() {
    const char* state = std::getenv("XDG_STATE_HOME");
    const char* home = std::getenv("HOME");
    std::filesystem::path folder;
    if (state != nullptr && *state != '\0') {
      folder = std::filesystem::path(state) / "kvist";
    } else if (home != nullptr && *home != '\0') {
      folder = std::filesystem::path(home) / ".local" / "state" / "kvist";
    } else {
      return {};
    }
    std::error_code error;
    std::filesystem::create_directories(folder, error);
    return error ? std::string() : (folder / "chat_history").string();
  }

  const bool terminal_;
  std::string history_file_;
};

// What a Ctrl-C meets.
enum class ChatPhase {
  kBusy,       // connecting, or a pipe is read: it ends the process
  kTyping,     // a person at a terminal writes: it says how to leave
  kAnswering,  // it cancels the answer
};

// Does what ChatPhase says. SIGTERM ends the process whatever the phase.
void OnChatSignal(int number, ChatPhase phase, Cancellation& cancellation) {
  if (number == SIGTERM || phase == ChatPhase::kBusy) {
    EndBySignal(number);
  } else if (phase == ChatPhase::kAnswering) {
    cancellation.Cancel();
  } else {
    std::fprintf(stderr, "\n(/exit or Ctrl-D leaves)\n> ");
  }
}

class Chat {
 public:
  Chat(const ChatFlags& flags, Client* client, Cancellation* cancellation,
       std::atomic<ChatPhase>* phase)
      : flags_(flags), client_(client), cancellation_(cancellation), phase_(phase) {}

  // Takes the session named, or a new one with the cache asked for.
  absl::Status Open() {
    KVIST_ASSIGN_OR_RETURN(cache_, AskedCache(flags_.generation.cache, "", *client_));
    if (!flags_.session.empty()) {
      v1::GetSessionRequest get;
      get.set_id(flags_.session);
      auto known = client_->GetSession(get);
      if (known.ok()) {
        session_ = known->id();
        begun_ = known->history_tokens() > 0;
        return absl::OkStatus();
      }
      if (!absl::IsNotFound(known.status())) return known.status();
    }
    v1::CreateSessionRequest create;
    create.set_id(flags_.session);
    *create.mutable_cache() = cache_;
    KVIST_ASSIGN_OR_RETURN(const v1::Session created, client_->CreateSession(create));
    session_ = created.id();
    return absl::OkStatus();
  }

  const std::string& session() const { return session_; }

  absl::Status Reset() {
    v1::ResetSessionRequest reset;
    reset.set_id(session_);
    KVIST_RETURN_IF_ERROR(client_->ResetSession(reset).status());
    begun_ = false;
    return absl::OkStatus();
  }

  // One turn: streams the answer to stdout. CANCELLED if Ctrl-C ended it, which is no error of the
  // chat.
  absl::Status Say(const std::string& line) {
    v1::GenerateRequest request;
    request.set_session_id(session_);
    FillRequest(flags_.generation, &request);
    *request.mutable_cache() = cache_;
    if (!begun_ && !flags_.system.empty()) {
      Add(v1::ChatMessage::SYSTEM, flags_.system, &request);
    }
    Add(v1::ChatMessage::USER, line, &request);
    GenerateOptions options;
    options.cancellation = cancellation_;
    options.on_delta = [](const v1::Delta& delta) {
      std::fwrite(delta.text().data(), 1, delta.text().size(), stdout);
      std::fflush(stdout);
    };
    cancellation_->Reset();
    const ChatPhase before = phase_->exchange(ChatPhase::kAnswering);
    Generated generated;
    const absl::Status status = client_->Generate(request, options, &generated);
    *phase_ = before;
    std::printf("\n");
    std::fflush(stdout);
    const v1::Finished& finished = generated.finished;
    if (finished.turn_saved()) begun_ = true;
    if (finished.has_turn_saved() && !finished.turn_saved()) {
      std::fprintf(stderr, "(the server could not save this turn: it will not remember it)\n");
    }
    if (!status.ok()) {
      const bool cancelled = cancellation_->cancelled();
      if (!finished.has_turn_saved() && (cancelled || !generated.tokens.empty())) AwaitTurnEnd();
      if (cancelled) return absl::CancelledError(status.message());
      return status;
    }
    const v1::Usage& usage = generated.finished.usage();
    std::fprintf(stderr, "[%lld tokens, %lld of them cached; %lld new at %.1f tok/s]\n",
                 static_cast<long long>(usage.prompt_tokens()),
                 static_cast<long long>(usage.cached_tokens()),
                 static_cast<long long>(usage.generated_tokens()),
                 generated.finished.timings().decode_tokens_per_second());
    return absl::OkStatus();
  }

 private:
  // A turn that was cancelled or cut off is saved without our being told; until then the next one
  // would be refused.
  void AwaitTurnEnd() {
    v1::GetSessionRequest get;
    get.set_id(session_);
    const auto until = std::chrono::steady_clock::now() + kTurnEndPatience;
    while (true) {
      const auto session = client_->GetSession(get);
      if (!session.ok()) return;
      if (session->history_tokens() > 0) begun_ = true;
      if (session->open_turn_id().empty() || std::chrono::steady_clock::now() >= until) return;
      std::this_thread::sleep_for(kTurnEndPoll);
    }
  }

  static void Add(v1::ChatMessage::Role role, const std::string& text,
                  v1::GenerateRequest* request) {
    v1::ChatMessage& message = *request->mutable_chat()->add_messages();
    message.set_role(role);
    message.set_content(text);
  }

  const ChatFlags& flags_;
  Client* const client_;
  Cancellation* const cancellation_;
  std::atomic<ChatPhase>* const phase_;
  v1::CacheParams cache_;  // asked for by flags
  std::string session_;
  bool begun_ = false;  // the session has a turn, so its system message
};

// A refusal at a terminal is told and the chat goes on; a script wants to know.
int Converse(Chat& chat, LineReader& lines) {
  int worst = kExitOk;
  while (const auto line = lines.Next()) {
    if (line->empty()) continue;
    if (*line == "/exit" || *line == "/quit") break;
    if (*line == "/help") {
      std::fputs(kHelp, stderr);
      continue;
    }
    const bool reset = *line == "/reset";
    if (!reset && line->front() == '/') {
      std::fprintf(stderr, "There is no %s.\n%s", line->c_str(), kHelp);
      continue;
    }
    const absl::Status status = reset ? chat.Reset() : chat.Say(*line);
    if (status.ok()) {
      if (reset) std::fprintf(stderr, "The conversation is forgotten.\n");
      continue;
    }
    if (absl::IsCancelled(status)) {
      std::fprintf(stderr, "(cancelled; what was said so far stays in the session)\n");
      continue;
    }
    worst = ReportError(status);
    if (!lines.terminal()) return worst;
  }
  return lines.terminal() ? kExitOk : worst;
}

int RunChat(const ChatFlags& flags) {
  Cancellation cancellation;
  std::atomic<ChatPhase> phase{ChatPhase::kBusy};
  InterruptWatch watch([&](int number) { OnChatSignal(number, phase, cancellation); });
  int exit_code = kExitOk;
  const auto client = ConnectOrReport(flags.endpoint, &exit_code);
  if (client == nullptr) return exit_code;
  Chat chat(flags, client.get(), &cancellation, &phase);
  if (const absl::Status status = chat.Open(); !status.ok()) return ReportError(status);
  LineReader lines;
  if (lines.terminal()) {
    phase = ChatPhase::kTyping;
    std::fprintf(stderr, "Session %s. /help tells what else there is.\n", chat.session().c_str());
  }
  exit_code = Converse(chat, lines);
  std::fprintf(stderr, "To go on: kvist chat --session %s\n", chat.session().c_str());
  return exit_code;
}

}  // namespace

void AddChat(CLI::App& app, Run* run) {
  auto flags = std::make_shared<ChatFlags>();
  CLI::App* command =
      AddCommand(app, "chat", "Talk to the model; the server remembers the conversation.",
                 "  kvist chat\n"
                 "  kvist chat --session kitchen --system \"You answer in one sentence.\"\n"
                 "  printf 'My name is Ida.\\nWhat is my name?\\n' | kvist chat --seed 1\n",
                 run, flags, &RunChat);
  AddEndpointFlag(command, &flags->endpoint);
  command->add_option("--session", flags->session,
                      "go on with this one, or make it; none: a new one");
  command->add_option("--system", flags->system, "a system message at the beginning");
  AddGenerationFlags(command, &flags->generation);
}

}  // namespace kvist::services
