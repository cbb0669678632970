// Checks for bugs. A failed check ends the process with the place and the condition; it must never
// be reachable from a request, a peer or a file (those get an absl::Status).
#ifndef KVIST_COMMON_BASE_CHECK_H_
#define KVIST_COMMON_BASE_CHECK_H_

#include <string_view>

namespace kvist {
[[noreturn]] void CheckFailed(const char* file, int line, const char* condition,
                              std::string_view message);
}  // namespace kvist

// Aborts unless `condition`. An optional second argument is a message convertible to
// std::string_view.
#define KVIST_CHECK(condition, ...)                                                          \
  do {                                                                                       \
    if (!(condition)) [[unlikely]]                                                           \
      ::kvist::CheckFailed(__FILE__, __LINE__, #condition, ::std::string_view(__VA_ARGS__)); \
  } while (false)

// As KVIST_CHECK, in debug builds only: for inner loops.
#ifdef NDEBUG
#define KVIST_DCHECK(condition, ...) \
  do {                               \
    (void)sizeof(condition);         \
  } while (false)
#else
#define KVIST_DCHECK(condition, ...) KVIST_CHECK(condition __VA_OPT__(, ) __VA_ARGS__)
#endif

#endif  // KVIST_COMMON_BASE_CHECK_H_
