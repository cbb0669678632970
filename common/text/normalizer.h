// Unicode normalisation for vocabularies that were trained on normalised text.
#ifndef KVIST_COMMON_TEXT_NORMALIZER_H_
#define KVIST_COMMON_TEXT_NORMALIZER_H_

#include <string>
#include <string_view>

namespace kvist::text {

// `text` in normalisation form C (Unicode annex 15). Time is linear up to a logarithm, also for
// long runs of combining marks. REQUIRES: text is valid UTF-8.
std::string NormalizeNfc(std::string_view text);

}  // namespace kvist::text

#endif  // KVIST_COMMON_TEXT_NORMALIZER_H_
