#include "coordinator/scheduler/block_allocator.h"

#include "common/check.h"

namespace millrace {

BlockAllocator::BlockAllocator(uint32_t num_blocks) : used_(num_blocks, false) {
  free_.reserve(num_blocks);
  for (BlockId block = num_blocks; block > 0; --block) free_.push_back(block - 1);
}

bool BlockAllocator::Allocate(uint32_t count, std::vector<BlockId>* table) {
  if (count > free_.size()) return false;
  for (uint32_t i = 0; i < count; ++i) {
    const BlockId block = free_.back();
    free_.pop_back();
    used_[block] = true;
    table->push_back(block);
  }
  return true;
}

void BlockAllocator::FreeAll(std::vector<BlockId>* table) {
  // From the back, so that the table's first block is the next to be given.
  while (!table->empty()) {
    const BlockId block = table->back();
    table->pop_back();
    MILLRACE_CHECK(block < used_.size() && used_[block]);
    used_[block] = false;
    free_.push_back(block);
  }
}

}  // namespace millrace
