// kvist blocks: where KV blocks are and how far the manager's mirror can be trusted.
#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "services/cli/commands.h"

namespace kvist::services {
namespace {

struct BlocksFlags {
  std::string worker;
  std::string endpoint;
  std::string output;
  size_t limit = 1000;
};

std::string ConfidenceText(v1::Confidence confidence) {
  return absl::AsciiStrToLower(v1::Confidence_Name(confidence));
}

int32_t FreeBlocks(const v1::PoolCounts& counts) {
  return counts.total() - counts.active() - counts.cached() - counts.partial() - counts.reserved();
}

nlohmann::ordered_json WorkerJson(const v1::WorkerInfo& worker) {
  auto pools = nlohmann::ordered_json::array();
  for (int i = 0; i < worker.pools_size(); ++i) {
    const v1::Pool& pool = worker.pools(i);
    const v1::PoolCounts counts = i < worker.counts_size() ? worker.counts(i) : v1::PoolCounts();
    pools.push_back({{"group", pool.group()},
                     {"kv_format", pool.kv_format()},
                     {"window_tokens", pool.window_tokens()},
                     {"block_tokens", pool.block_tokens()},
                     {"bytes_per_block", pool.bytes_per_block()},
                     {"total", counts.total()},
                     {"free", FreeBlocks(counts)},
                     {"reserved", counts.reserved()},
                     {"partial", counts.partial()},
                     {"active", counts.active()},
                     {"cached", counts.cached()},
                     {"disk", counts.disk()}});
  }
  return {{"worker", worker.worker_id()},
          {"address", worker.address()},
          {"model", worker.model_name()},
          {"confidence", ConfidenceText(worker.confidence())},
          {"lag_ms", worker.lag_ms()},
          {"suspect", worker.suspect()},
          {"running_sequences", worker.load().running_sequences()},
          {"waiting_sequences", worker.load().waiting_sequences()},
          {"mirrored_blocks", worker.mirrored_blocks()},
          {"pools", std::move(pools)}};
}

nlohmann::ordered_json StatsJson(const v1::GetStatsResponse& stats) {
  auto workers = nlohmann::ordered_json::array();
  for (const v1::WorkerInfo& worker : stats.workers()) workers.push_back(WorkerJson(worker));
  nlohmann::ordered_json evictions = nlohmann::ordered_json::object();
  for (const auto& [cause, count] : stats.evictions_by_cause()) evictions[cause] = count;
  return {{"manager", stats.manager_id()},
          {"workers", std::move(workers)},
          {"sessions_stored", stats.sessions_stored()},
          {"sessions_holding_blocks", stats.sessions_holding_blocks()},
          {"blocks", stats.blocks()},
          {"bytes", stats.bytes()},
          {"shared_bytes", stats.shared_bytes()},
          {"evictions_by_cause", std::move(evictions)},
          {"resyncs", stats.resyncs()},
          {"events_applied", stats.events_applied()}};
}

void PrintStats(const v1::GetStatsResponse& stats) {
  std::vector<std::vector<std::string>> rows = {{"WORKER", "CONFIDENCE", "POOL", "BLOCK", "TOTAL",
                                                 "FREE", "ACTIVE", "CACHED", "PARTIAL", "RESERVED",
                                                 "DISK"}};
  for (const v1::WorkerInfo& worker : stats.workers()) {
    for (int i = 0; i < worker.pools_size(); ++i) {
      const v1::Pool& pool = worker.pools(i);
      const v1::PoolCounts counts = i < worker.counts_size() ? worker.counts(i) : v1::PoolCounts();
      rows.push_back(
          {worker.worker_id(), ConfidenceText(worker.confidence()),
           absl::StrCat(pool.kv_format(), " ", pool.group()),
           absl::StrCat(pool.block_tokens(), " tokens, ", HumanBytes(pool.bytes_per_block())),
           absl::StrCat(counts.total()), absl::StrCat(FreeBlocks(counts)),
           absl::StrCat(counts.active()), absl::StrCat(counts.cached()),
           absl::StrCat(counts.partial()), absl::StrCat(counts.reserved()),
           absl::StrCat(counts.disk())});
    }
  }
  PrintTable(rows);
  std::printf(
      "%lld blocks mirrored, %s, of them %s shared; %lld sessions stored, %lld holding blocks\n",
      static_cast<long long>(stats.blocks()), HumanBytes(stats.bytes()).c_str(),
      HumanBytes(stats.shared_bytes()).c_str(), static_cast<long long>(stats.sessions_stored()),
      static_cast<long long>(stats.sessions_holding_blocks()));
}

int ShowWorkers(Client& client, const BlocksFlags& flags) {
  const auto stats = client.GetStats();
  if (!stats.ok()) return ReportError(stats.status());
  if (flags.output == "json") {
    PrintJson(StatsJson(*stats));
  } else {
    PrintStats(*stats);
  }
  return kExitOk;
}

int ShowBlocks(Client& client, const BlocksFlags& flags) {
  const auto blocks = client.ListBlocks(flags.worker, flags.limit);
  if (!blocks.ok()) return ReportError(blocks.status());
  std::vector<std::vector<std::string>> rows = {{"KEY", "PARENT", "POOL", "TIER", "SESSIONS"}};
  auto json = nlohmann::ordered_json::array();
  for (const v1::BlockInfo& block : *blocks) {
    const std::string key = absl::BytesToHexString(block.key());
    const std::string parent = absl::BytesToHexString(block.parent());
    const std::string tier = absl::AsciiStrToLower(v1::Tier_Name(block.tier()));
    rows.push_back({key, parent, absl::StrCat(block.pool()), tier, absl::StrCat(block.sessions())});
    json.push_back({{"key", key},
                    {"parent", parent},
                    {"pool", block.pool()},
                    {"tier", tier},
                    {"sessions", block.sessions()}});
  }
  if (flags.output == "json") {
    PrintJson({{"worker", flags.worker}, {"blocks", std::move(json)}});
  } else {
    PrintTable(rows);
  }
  return kExitOk;
}

int RunBlocks(const BlocksFlags& flags) {
  int exit_code = kExitOk;
  const auto client = ConnectOrReport(flags.endpoint, &exit_code);
  if (client == nullptr) return exit_code;
  return flags.worker.empty() ? ShowWorkers(*client, flags) : ShowBlocks(*client, flags);
}

}  // namespace

void AddBlocks(CLI::App& app, Run* run) {
  auto flags = std::make_shared<BlocksFlags>();
  CLI::App* command =
      AddCommand(app, "blocks", "Show the workers' KV pools, or the blocks of one worker.",
                 "  kvist blocks\n"
                 "  kvist blocks worker-1 --limit 20\n",
                 run, flags, &RunBlocks);
  command->add_option("worker", flags->worker, "list this worker's blocks");
  command->add_option("--limit", flags->limit, "of blocks listed")
      ->check(CLI::Range(size_t{1}, size_t{10'000'000}))
      ->capture_default_str();
  AddEndpointFlag(command, &flags->endpoint);
  AddOutputFlag(command, &flags->output);
}

}  // namespace kvist::services
