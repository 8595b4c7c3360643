// Tile sizes that the scratch sizes depend on.
#pragma once

#include <cstddef>

namespace millrace::kernels::cpu {

// Weight rows worked on together; their sums leave as one store.
inline constexpr size_t kPanelColumns = 4;
// Queries that share the loads of keys and values, at most.
inline constexpr size_t kMaxAttentionQueries = 4;

}  // namespace millrace::kernels::cpu
