// Which KV blocks are free. Who holds the others is written in the sequences' block tables.
#pragma once

#include <cstdint>
#include <vector>

#include "common/ids.h"

namespace millrace {

// Thread: engine. Gives the block that was freed last, so that a small load touches little memory.
// Deterministic.
class BlockAllocator {
 public:
  BlockAllocator() = default;
  explicit BlockAllocator(uint32_t num_blocks);

  uint32_t num_blocks() const { return static_cast<uint32_t>(used_.size()); }
  uint32_t num_free() const { return static_cast<uint32_t>(free_.size()); }
  uint32_t num_used() const { return num_blocks() - num_free(); }

  // Appends `count` free blocks to `table`, or changes nothing and returns false if there are fewer.
  bool Allocate(uint32_t count, std::vector<BlockId>* table);

  // Frees every block of `table` and empties it. REQUIRES: all of them are allocated.
  void FreeAll(std::vector<BlockId>* table);

 private:
  std::vector<BlockId> free_;
  std::vector<bool> used_;
};

}  // namespace millrace
