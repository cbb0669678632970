// Clients that chat at once with a Kvist frontend or with llama.cpp's llama-server, each turn as
// soon as the one before has ended. Both get the same prompts: the text of the whole conversation
// so far, which begins with a system prompt that all clients share.
//   chat_load --target kvist --address 127.0.0.1:7070 --system FILE --clients 16 --turns 4
//   chat_load --target llama-server --address 127.0.0.1:8080 --system FILE --distinct
// Prints one JSON object.
#include <CLI/CLI.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "common/base/clock.h"
#include "common/base/status.h"
#include "services/client/client.h"

namespace kvist::services {
namespace {

using nlohmann::json;

struct LoadFlags {
  std::string target = "kvist";
  std::string address;
  std::string system_file;
  int clients = 16;
  int turns = 4;
  int64_t new_tokens = 32;
  bool distinct = false;
};

struct Turn {
  double first_token_s = 0;  // from sending the request
  int64_t tokens = 0;
  std::string text;
};

// Where completions come from. Thread-safe.
class Target {
 public:
  virtual ~Target() = default;
  // Greedy, exactly `new_tokens` of them.
  virtual absl::StatusOr<Turn> Complete(const std::string& prompt, int64_t new_tokens) = 0;
};

class KvistTarget final : public Target {
 public:
  explicit KvistTarget(std::unique_ptr<Client> client) : client_(std::move(client)) {}

  absl::StatusOr<Turn> Complete(const std::string& prompt, int64_t new_tokens) override {
    v1::GenerateRequest request;
    request.mutable_text()->set_text(prompt);
    request.mutable_stop()->set_max_new_tokens(new_tokens);
    request.mutable_stop()->set_ignore_model_stops(true);
    const SystemClock clock;
    const MonotonicTime start = clock.Now();
    Turn turn;
    GenerateOptions options;
    options.on_delta = [&](const v1::Delta& delta) {
      if (turn.tokens == 0) turn.first_token_s = SecondsBetween(start, clock.Now());
      turn.tokens += delta.tokens_size();
    };
    Generated generated;
    KVIST_RETURN_IF_ERROR(client_->Generate(request, options, &generated));
    turn.text = std::move(generated.text);
    return turn;
  }

 private:
  const std::unique_ptr<Client> client_;
};

// Server-sent events: "data: {...}" and an empty line.
class LlamaServerTarget final : public Target {
 public:
  LlamaServerTarget(std::string host, std::string port)
      : host_(std::move(host)), port_(std::move(port)) {}

  absl::StatusOr<Turn> Complete(const std::string& prompt, int64_t new_tokens) override {
    namespace http = boost::beast::http;
    boost::asio::io_context context;
    boost::beast::tcp_stream stream(context);
    boost::system::error_code error;
    boost::asio::ip::tcp::resolver resolver(context);
    const auto endpoints = resolver.resolve(host_, port_, error);
    if (!error) stream.connect(endpoints, error);
    if (error) return absl::UnavailableError(error.message());
    http::request<http::string_body> request(http::verb::post, "/completion", 11);
    request.set(http::field::host, host_);
    request.set(http::field::content_type, "application/json");
    request.body() = json{{"prompt", prompt},     {"n_predict", new_tokens}, {"stream", true},
                          {"temperature", 0},     {"cache_prompt", true},    {"ignore_eos", true},
                          {"return_tokens", true}}
                         .dump();
    request.prepare_payload();
    const SystemClock clock;
    const MonotonicTime start = clock.Now();
    http::write(stream, request, error);
    boost::beast::flat_buffer buffer;
    http::response_parser<http::string_body> parser;
    parser.body_limit(boost::none);
    Turn turn;
    size_t read = 0;
    while (!error && !parser.is_done()) {
      http::read_some(stream, buffer, parser, error);
      const std::string& body = parser.get().body();
      for (size_t end; (end = body.find("\n\n", read)) != std::string::npos; read = end + 2) {
        const std::string_view event = std::string_view(body).substr(read, end - read);
        KVIST_RETURN_IF_ERROR(TakeEvent(event, start, &turn));
      }
    }
    if (error) return absl::UnavailableError(error.message());
    if (parser.get().result() != http::status::ok || turn.tokens == 0) {
      return absl::UnavailableError(absl::StrCat("llama-server answers ", parser.get().result_int(),
                                                 ": ", parser.get().body()));
    }
    return turn;
  }

 private:
  static absl::Status TakeEvent(std::string_view event, MonotonicTime start, Turn* turn) {
    constexpr std::string_view kData = "data: ";
    if (!event.starts_with(kData)) return absl::OkStatus();
    const json value = json::parse(event.substr(kData.size()), nullptr, false);
    if (!value.is_object()) return absl::InternalError("llama-server sent an event of no JSON");
    if (value.value("stop", false)) {
      turn->tokens = value.value("tokens_predicted", int64_t{0});
      return absl::OkStatus();
    }
    if (turn->first_token_s == 0) {
      turn->first_token_s = SecondsBetween(start, SystemClock().Now());
    }
    turn->text += value.value("content", "");
    return absl::OkStatus();
  }

  const std::string host_;
  const std::string port_;
};

absl::StatusOr<std::unique_ptr<Target>> MakeTarget(const LoadFlags& flags) {
  if (flags.target == "kvist") {
    KVIST_ASSIGN_OR_RETURN(auto client,
                           Client::Connect(flags.address, std::chrono::milliseconds(5000)));
    return std::make_unique<KvistTarget>(std::move(client));
  }
  const size_t colon = flags.address.rfind(':');
  if (colon == std::string::npos) return InvalidField("--address", "must be HOST:PORT");
  return std::make_unique<LlamaServerTarget>(flags.address.substr(0, colon),
                                             flags.address.substr(colon + 1));
}

// Every client asks something else, but of about one length.
std::string Question(int client, int turn) {
  return absl::StrCat("\nUser ", client, ": Question ", turn + 1,
                      ": what did the red cat do then, and why?\nAssistant:");
}

absl::StatusOr<std::vector<Turn>> Chat(Target& target, const LoadFlags& flags,
                                       const std::string& system, int client) {
  std::string conversation = flags.distinct ? absl::StrCat("Session ", client, ".\n") : "";
  conversation += system;
  std::vector<Turn> turns;
  for (int turn = 0; turn < flags.turns; ++turn) {
    conversation += Question(client, turn);
    KVIST_ASSIGN_OR_RETURN(Turn result, target.Complete(conversation, flags.new_tokens));
    if (result.tokens != flags.new_tokens) {
      return absl::InternalError(absl::StrCat("client ", client, " got ", result.tokens,
                                              " tokens, not ", flags.new_tokens));
    }
    conversation += result.text;
    turns.push_back(std::move(result));
  }
  return turns;
}

absl::StatusOr<json> RunLoad(const LoadFlags& flags) {
  std::ifstream file(flags.system_file);
  const std::string system{std::istreambuf_iterator<char>(file), {}};
  if (system.empty()) return InvalidField("--system", "is empty or cannot be read");
  KVIST_ASSIGN_OR_RETURN(const std::unique_ptr<Target> target, MakeTarget(flags));
  std::vector<absl::StatusOr<std::vector<Turn>>> chats(
      static_cast<size_t>(flags.clients), absl::StatusOr<std::vector<Turn>>(std::vector<Turn>()));
  const SystemClock clock;
  const MonotonicTime start = clock.Now();
  std::vector<std::thread> threads;
  for (int client = 0; client < flags.clients; ++client) {
    threads.emplace_back(
        [&, client] { chats[static_cast<size_t>(client)] = Chat(*target, flags, system, client); });
  }
  for (std::thread& thread : threads) thread.join();
  const double seconds = SecondsBetween(start, clock.Now());
  int64_t tokens = 0;
  auto first = json::array();
  auto later = json::array();
  for (const auto& chat : chats) {
    if (!chat.ok()) return chat.status();
    for (size_t turn = 0; turn < chat->size(); ++turn) {
      (turn == 0 ? first : later).push_back((*chat)[turn].first_token_s);
      tokens += (*chat)[turn].tokens;
    }
  }
  return json{{"clients", flags.clients},
              {"turns", flags.turns},
              {"new_tokens", flags.new_tokens},
              {"seconds", seconds},
              {"tokens", tokens},
              {"tokens_per_second", static_cast<double>(tokens) / seconds},
              {"first_turn_ttft_s", first},
              {"later_turns_ttft_s", later}};
}

}  // namespace
}  // namespace kvist::services

int main(int argc, char** argv) {
  kvist::services::LoadFlags flags;
  CLI::App app{"Clients that chat at once with a server.", "chat_load"};
  app.add_option("--target", flags.target, "kvist or llama-server")
      ->check(CLI::IsMember({"kvist", "llama-server"}));
  app.add_option("--address", flags.address, "HOST:PORT")->required();
  app.add_option("--system", flags.system_file, "file with the system prompt")->required();
  app.add_option("--clients", flags.clients, "at once")->check(CLI::Range(1, 1024));
  app.add_option("--turns", flags.turns, "of each")->check(CLI::Range(1, 1000));
  app.add_option("--new", flags.new_tokens, "tokens of each answer")->check(CLI::Range(1, 100000));
  app.add_flag("--distinct", flags.distinct, "no two clients share a prefix");
  CLI11_PARSE(app, argc, argv);
  const auto result = kvist::services::RunLoad(flags);
  if (!result.ok()) {
    std::fprintf(stderr, "chat_load: %s\n", result.status().ToString().c_str());
    return 1;
  }
  std::printf("%s\n", result->dump().c_str());
  return 0;
}
