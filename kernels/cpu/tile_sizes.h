// Tile sizes that the scratch sizes depend on.
#pragma once

#include <cstddef>

namespace millrace::kernels::cpu {

// Weight rows worked on together; their sums leave as one store.
inline constexpr size_t kPanelColumns = 4;
// Queries that share the loads of keys and values into registers, at most.
inline constexpr size_t kMaxAttentionQueries = 4;
// Queries that go through a split together, so that it is read from memory once, at most.
inline constexpr size_t kItemQueries = 24;
// Positions of a split: part of the definition of PagedAttention.
inline constexpr size_t kSplitTokens = 256;
// Where a context is shared by threads: queries of splits whose results wait to be merged, for each thread.
inline constexpr size_t kWaitingQueries = 16 * kItemQueries;

}  // namespace millrace::kernels::cpu
