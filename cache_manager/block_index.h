// How blocks of one pool are numbered.
#ifndef KVIST_CACHE_MANAGER_BLOCK_INDEX_H_
#define KVIST_CACHE_MANAGER_BLOCK_INDEX_H_

#include <cstdint>

namespace kvist::cache_manager {

// A block's place in its pool and in the backend's arena: [0, number of blocks).
using BlockIndex = int32_t;
inline constexpr BlockIndex kNoBlock = -1;

}  // namespace kvist::cache_manager

#endif  // KVIST_CACHE_MANAGER_BLOCK_INDEX_H_
