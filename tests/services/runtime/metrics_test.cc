#include "services/runtime/metrics.h"

#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <set>
#include <string>
#include <vector>

namespace kvist::services {
namespace {

// A row of the README's table of metrics.
std::string TableRow(const MetricDescription& row) {
  constexpr std::array<const char*, 3> kRoles = {"frontend", "worker", "cache manager"};
  constexpr std::array<const char*, 3> kTypes = {"counter", "gauge", "histogram"};
  std::string text = "| `";
  text += row.name;
  text += "` | ";
  text += kRoles[static_cast<size_t>(row.role)];
  text += " | ";
  text += kTypes[static_cast<size_t>(row.type)];
  text += " | ";
  text += row.unit;
  text += " | ";
  text += row.labels;
  text += " | ";
  text += row.help;
  text += " |\n";
  return text;
}

std::set<std::string> NamesOf(MetricRole role) {
  std::set<std::string> names;
  for (const MetricDescription& row : DeclaredMetrics()) {
    if (row.role == role) names.insert(row.name);
  }
  return names;
}

std::set<std::string> Scraped(const prometheus::Registry& registry) {
  std::set<std::string> names;
  for (const auto& family : registry.Collect()) names.insert(family.name);
  return names;
}

TEST(MetricsTest, AScrapeOfEachRoleHasExactlyTheDeclaredNames) {
  prometheus::Registry frontend_registry;
  FrontendMetrics frontend(frontend_registry);
  EXPECT_EQ(Scraped(frontend_registry), NamesOf(MetricRole::kFrontend));

  prometheus::Registry worker_registry;
  WorkerMetrics worker(worker_registry, "w0");
  worker.blocks.Add(worker.BlockLabels("0/f16", "free", "device"));
  worker.memory_bytes.Add({{"worker", "w0"}, {"part", "weights"}});
  worker.cache_requests_total.Add({{"worker", "w0"}, {"allocation", "paged"}});
  EXPECT_EQ(Scraped(worker_registry), NamesOf(MetricRole::kWorker));

  prometheus::Registry manager_registry;
  ManagerMetrics manager(manager_registry);
  manager.mirror_confidence.Add({{"worker", "w0"}});
  EXPECT_EQ(Scraped(manager_registry), NamesOf(MetricRole::kCacheManager));
}

TEST(MetricsTest, EveryMemberHasItsOwnSeries) {
  prometheus::Registry registry;
  FrontendMetrics metrics(registry);
  size_t series = 0;
  for (const auto& family : registry.Collect()) series += family.metric.size();
  EXPECT_EQ(series, NamesOf(MetricRole::kFrontend).size() + kFinishReasons - 1);
}

TEST(MetricsTest, AllRolesAndSeveralWorkersShareARegistry) {
  prometheus::Registry registry;
  FrontendMetrics frontend(registry);
  ManagerMetrics manager(registry);
  WorkerMetrics first(registry, "w0");
  WorkerMetrics second(registry, "w1");
  first.decode_tokens_total.Increment(3);
  EXPECT_EQ(first.decode_tokens_total.Value(), 3);
  EXPECT_EQ(second.decode_tokens_total.Value(), 0);
}

TEST(MetricsTest, TheReadmeTableIsTheDeclarations) {
  std::ifstream file("README.md");  // tests run in the project's root
  ASSERT_TRUE(file.is_open());
  const std::string readme((std::istreambuf_iterator<char>(file)),
                           std::istreambuf_iterator<char>());
  std::string table;
  for (const MetricDescription& row : DeclaredMetrics()) table += TableRow(row);
  EXPECT_NE(readme.find("| --- | --- | --- | --- | --- | --- |\n" + table + "\n"),
            std::string::npos)
      << "the table should be:\n"
      << table;
}

TEST(MetricsTest, NamesFollowTheConventionsAndTellTheirUnit) {
  std::set<std::string> seen;
  for (const MetricDescription& row : DeclaredMetrics()) {
    const std::string name = row.name;
    EXPECT_TRUE(seen.insert(name).second) << name;
    EXPECT_EQ(name.rfind("kvist_", 0), 0u) << name;
    EXPECT_EQ(name.ends_with("_total"), row.type == MetricType::kCounter) << name;
    EXPECT_STRNE(row.unit, "") << name;
    EXPECT_STRNE(row.help, "") << name;
    if (std::string(row.unit) == "seconds") {
      EXPECT_TRUE(name.ends_with("_seconds")) << name;
    }
    for (const char* secret : {"session", "tenant", "prompt", "text"}) {
      EXPECT_EQ(std::string(row.labels).find(secret), std::string::npos) << name;
    }
  }
}

}  // namespace
}  // namespace kvist::services
