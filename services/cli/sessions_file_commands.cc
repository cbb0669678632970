// kvist sessions export and import: a session as a file.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "services/cli/commands.h"
#include "services/cli/interrupt.h"
#include "services/cli/whole_file.h"
#include "worker/kv/session_file.h"

namespace kvist::services {
namespace {

struct FileFlags {
  std::string id;
  std::string file;
  std::string endpoint;
  std::string output;
};

constexpr size_t kChunkBytes = size_t{1} << 20;  // the most that the server takes at once

std::span<const std::byte> BytesOf(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

// How far a copy is, on stderr. On a terminal one line that changes; else a line for each tenth of
// a copy that is large. Single-threaded.
class ProgressLine {
 public:
  explicit ProgressLine(const char* verb) : verb_(verb), terminal_(isatty(STDERR_FILENO) == 1) {}
  ~ProgressLine() {
    if (terminal_ && shown_ >= 0) std::fputc('\n', stderr);
  }
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  void Show(uint64_t done_bytes, uint64_t total_bytes) {
    if (total_bytes < kLeastBytes) return;
    const int percent = static_cast<int>(100 * done_bytes / total_bytes);
    if (percent == shown_ || (!terminal_ && percent / 10 == shown_ / 10 && shown_ >= 0)) return;
    shown_ = percent;
    std::fprintf(stderr, "%s%s %s of %s (%d %%)%s", terminal_ ? "\r" : "", verb_,
                 HumanBytes(static_cast<int64_t>(done_bytes)).c_str(),
                 HumanBytes(static_cast<int64_t>(total_bytes)).c_str(), percent,
                 terminal_ ? "" : "\n");
    std::fflush(stderr);
  }

 private:
  static constexpr uint64_t kLeastBytes = uint64_t{4} << 20;  // less is done before it is read
  const char* const verb_;
  const bool terminal_;
  int shown_ = -1;
};

void PrintNote(const std::string& note) {
  if (!note.empty()) std::fprintf(stderr, "note: %s\n", note.c_str());
}

int Report(const Cancellation& cancellation, const absl::Status& status) {
  return cancellation.cancelled() ? static_cast<int>(kExitInterrupted) : ReportError(status);
}

void PrintExported(const FileFlags& flags, const v1::SessionFileFacts& facts) {
  if (!facts.note().empty()) {
    PrintNote(absl::StrCat("the file has the history and no blocks: ", facts.note()));
  }
  if (flags.output == "json") {
    PrintJson({{"session", flags.id},
               {"file", flags.file},
               {"bytes", facts.file_bytes()},
               {"tokens", facts.history_tokens()},
               {"blocks", facts.blocks()},
               {"cached_tokens", facts.cached_tokens()},
               {"note", facts.note()}});
    return;
  }
  std::printf("%s: %s, %s tokens, %s of them with their KV in %s blocks\n", flags.file.c_str(),
              HumanBytes(facts.file_bytes()).c_str(), absl::StrCat(facts.history_tokens()).c_str(),
              absl::StrCat(facts.cached_tokens()).c_str(), absl::StrCat(facts.blocks()).c_str());
}

int RunExport(const FileFlags& flags) {
  Cancellation cancellation;
  InterruptWatch interrupt([&](int) { cancellation.Cancel(); });
  auto file = WholeFile::Create(flags.file);
  if (!file.ok()) return ReportLocalError(file.status());
  int exit_code = kExitOk;
  const auto client = ConnectOrReport(flags.endpoint, &exit_code);
  if (client == nullptr) return exit_code;
  v1::SessionFileFacts facts;
  worker::SessionFileReader check;
  absl::Status local;
  uint64_t bytes = 0;
  ProgressLine progress("exported");
  const absl::Status status = client->ExportSession(
      flags.id, {.on_facts = [&](const v1::SessionFileFacts& told) { facts = told; },
                 .on_data =
                     [&](const std::string& data) {
                       local = check.Add(BytesOf(data));
                       if (local.ok()) local = (*file)->Write(data);
                       bytes += data.size();
                       progress.Show(bytes, static_cast<uint64_t>(facts.file_bytes()));
                       return local.ok();
                     },
                 .cancellation = &cancellation});
  if (!local.ok()) return ReportLocalError(local);
  if (!status.ok()) return Report(cancellation, status);
  local = check.Finish();
  if (local.ok()) local = (*file)->Commit();
  if (!local.ok()) return ReportLocalError(local);
  PrintExported(flags, facts);
  return kExitOk;
}

// Reads all of it, so that a damaged file is known before anything is sent.
absl::Status CheckFile(const std::string& path, worker::SessionFileReader* file) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return absl::NotFoundError("cannot be read");
  std::string chunk(kChunkBytes, '\0');
  while (in.read(chunk.data(), static_cast<std::streamsize>(chunk.size())), in.gcount() > 0) {
    const auto got = static_cast<size_t>(in.gcount());
    KVIST_RETURN_IF_ERROR(file->Add(BytesOf(std::string_view(chunk).substr(0, got))));
  }
  if (in.bad()) return absl::UnavailableError("cannot be read");
  return file->Finish();
}

void PrintImported(const FileFlags& flags, const v1::ImportSessionResponse& imported) {
  const v1::Session& session = imported.session();
  PrintNote(imported.note());
  if (flags.output == "json") {
    PrintJson({{"session", session.id()},
               {"version", session.version()},
               {"tokens", session.history_tokens()},
               {"turns", session.turns()},
               {"blocks", imported.blocks()},
               {"cached_tokens", imported.cached_tokens()},
               {"note", imported.note()}});
    return;
  }
  if (imported.blocks() == 0 && session.history_tokens() > 0) {
    std::fprintf(stderr, "the next turn computes its %s tokens anew\n",
                 absl::StrCat(session.history_tokens()).c_str());
  }
  std::printf("%s: %s tokens, %s of them with their KV in %s blocks\n", session.id().c_str(),
              absl::StrCat(session.history_tokens()).c_str(),
              absl::StrCat(imported.cached_tokens()).c_str(),
              absl::StrCat(imported.blocks()).c_str());
}

int RunImport(const FileFlags& flags) {
  Cancellation cancellation;
  InterruptWatch interrupt([&](int) { cancellation.Cancel(); });
  worker::SessionFileReader check;
  if (const absl::Status status = CheckFile(flags.file, &check); !status.ok()) {
    return ReportLocalError(
        absl::Status(status.code(), absl::StrCat(flags.file, ": ", std::string(status.message()))));
  }
  int exit_code = kExitOk;
  const auto client = ConnectOrReport(flags.endpoint, &exit_code);
  if (client == nullptr) return exit_code;
  std::ifstream in(flags.file, std::ios::binary);
  uint64_t bytes = 0;
  ProgressLine progress("imported");
  const auto imported = client->ImportSession(
      flags.id, {.next_data =
                     [&](std::string* data) {
                       data->resize(kChunkBytes);
                       in.read(data->data(), static_cast<std::streamsize>(data->size()));
                       data->resize(static_cast<size_t>(in.gcount()));
                       bytes += data->size();
                       progress.Show(bytes, check.file_bytes());
                     },
                 .cancellation = &cancellation});
  if (!imported.ok()) return Report(cancellation, imported.status());
  PrintImported(flags, *imported);
  return kExitOk;
}

}  // namespace

void AddSessionsFiles(CLI::App& sessions, Run* run) {
  const auto export_flags = std::make_shared<FileFlags>();
  CLI::App* save = AddCommand(
      sessions, "export",
      "Save a session as a file: its history and the KV blocks computed for it.",
      "  kvist sessions export kitchen kitchen.kvist\n"
      "  kvist sessions export kitchen kitchen.kvist --output json\n"
      "The file appears whole or not at all; one of that name is replaced. The session stays.\n"
      "Restore it, here or at another server, with: kvist sessions import kitchen.kvist\n",
      run, export_flags, &RunExport);
  save->add_option("id", export_flags->id, "the session")->required();
  save->add_option("file", export_flags->file, "where to; readable by its owner alone")->required();
  AddEndpointFlag(save, &export_flags->endpoint);
  AddOutputFlag(save, &export_flags->output);
  const auto import_flags = std::make_shared<FileFlags>();
  CLI::App* restore = AddCommand(
      sessions, "import", "Restore a session from a file that export saved.",
      "  kvist sessions import kitchen.kvist\n"
      "  kvist sessions import kitchen.kvist --id pantry\n"
      "The next turn finds the blocks of the file and answers as if nothing had moved. Blocks of\n"
      "another numerics id, block size or KV format, or sealed under another cluster secret, are\n"
      "left out: the next turn computes them anew.\n",
      run, import_flags, &RunImport);
  restore->add_option("file", import_flags->file, "of kvist sessions export")->required();
  restore->add_option("--id", import_flags->id, "the session's new id; none: the file's");
  AddEndpointFlag(restore, &import_flags->endpoint);
  AddOutputFlag(restore, &import_flags->output);
}

}  // namespace kvist::services
