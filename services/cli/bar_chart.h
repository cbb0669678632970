// Bars in plain characters, for results that span powers of ten.
#ifndef KVIST_SERVICES_CLI_BAR_CHART_H_
#define KVIST_SERVICES_CLI_BAR_CHART_H_

#include <span>
#include <string>

namespace kvist::services {

struct Bar {
  std::string group;  // shown where it changes
  std::string label;
  double value = 0;  // not above 0: no bar
  std::string text;  // behind the bar
};

// A line per bar. Lengths are logarithmic: the least value has one character, the greatest `width`.
// The last line says by what factor a character more multiplies; there is none if all values are
// equal. Empty without bars. REQUIRES: width >= 2.
std::string LogBarChart(std::span<const Bar> bars, int width);

}  // namespace kvist::services

#endif  // KVIST_SERVICES_CLI_BAR_CHART_H_
