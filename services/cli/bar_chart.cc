#include "services/cli/bar_chart.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/check.h"

namespace kvist::services {
namespace {

constexpr char kBarCharacter = '#';

std::string Padded(const std::string& text, size_t width) {
  return text + std::string(width - text.size(), ' ');
}

}  // namespace

std::string LogBarChart(std::span<const Bar> bars, int width) {
  KVIST_CHECK(width >= 2);
  double least = 0;
  double greatest = 0;
  size_t group_width = 0;
  size_t label_width = 0;
  for (const Bar& bar : bars) {
    group_width = std::max(group_width, bar.group.size());
    label_width = std::max(label_width, bar.label.size());
    if (!(bar.value > 0)) continue;
    if (least == 0 || bar.value < least) least = bar.value;
    greatest = std::max(greatest, bar.value);
  }
  const double span = greatest > least ? std::log(greatest / least) : 0;
  std::string chart;
  for (size_t i = 0; i < bars.size(); ++i) {
    const Bar& bar = bars[i];
    size_t length = 0;
    if (bar.value > 0) {
      const double share = span > 0 ? std::log(bar.value / least) / span : 0;
      length = 1 + static_cast<size_t>(std::lround(share * (width - 1)));
    }
    const bool new_group = i == 0 || bars[i - 1].group != bar.group;
    absl::StrAppend(&chart, Padded(new_group ? bar.group : "", group_width), "  ",
                    Padded(bar.label, label_width), " |", std::string(length, kBarCharacter), " ",
                    bar.text, "\n");
  }
  if (span > 0) {
    absl::StrAppend(&chart, absl::StrFormat("Logarithmic: each %c more is a factor of %.2f.\n",
                                            kBarCharacter, std::exp(span / (width - 1))));
  }
  return chart;
}

}  // namespace kvist::services
