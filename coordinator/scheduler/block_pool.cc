#include "coordinator/scheduler/block_pool.h"

#include "common/check.h"

namespace millrace {

BlockPool::BlockPool(uint32_t num_blocks) : blocks_(num_blocks) {
  blank_.reserve(num_blocks);
  for (BlockId block = num_blocks; block > 0; --block) blank_.push_back(block - 1);
}

bool BlockPool::Allocate(uint32_t count, std::vector<BlockId>* table) {
  if (count > num_free()) return false;
  for (uint32_t i = 0; i < count; ++i) {
    const BlockId block = TakeFree();
    Hold(block);
    table->push_back(block);
  }
  return true;
}

BlockId BlockPool::TakeFree() {
  if (!blank_.empty()) {
    const BlockId block = blank_.back();
    blank_.pop_back();
    return block;
  }
  const BlockId block = oldest_idle_;
  RemoveIdle(block);
  by_name_.erase(blocks_[block].name);
  blocks_[block].named = false;
  return block;
}

void BlockPool::Release(std::vector<BlockId>* table) {
  while (!table->empty()) {
    const BlockId block = table->back();
    table->pop_back();
    LetGo(block);
  }
}

void BlockPool::Name(const BlockHash& name, BlockId* block) {
  MILLRACE_CHECK(blocks_[*block].holders == 1 && !blocks_[*block].named);
  const auto [it, added] = by_name_.try_emplace(name, *block);
  if (added) {
    blocks_[*block].named = true;
    blocks_[*block].name = name;
    return;
  }
  if (blocks_[it->second].holders == 0) RemoveIdle(it->second);
  Hold(it->second);
  LetGo(*block);
  *block = it->second;
}

uint32_t BlockPool::Find(absl::Span<const BlockHash> names, uint32_t* free) const {
  uint32_t found = 0;
  *free = 0;
  for (const BlockHash& name : names) {
    const auto it = by_name_.find(name);
    if (it == by_name_.end()) break;
    ++found;
    *free += blocks_[it->second].holders == 0;
  }
  return found;
}

void BlockPool::Share(absl::Span<const BlockHash> names, std::vector<BlockId>* table) {
  for (const BlockHash& name : names) {
    const auto it = by_name_.find(name);
    MILLRACE_CHECK(it != by_name_.end());
    const BlockId block = it->second;
    if (blocks_[block].holders == 0) RemoveIdle(block);
    Hold(block);
    table->push_back(block);
  }
}

void BlockPool::Hold(BlockId block) {
  if (blocks_[block].holders++ == 0) ++num_used_;
}

void BlockPool::LetGo(BlockId block) {
  MILLRACE_CHECK(block < blocks_.size() && blocks_[block].holders > 0);
  if (--blocks_[block].holders > 0) return;
  --num_used_;
  if (blocks_[block].named) {
    PushIdle(block);
  } else {
    blank_.push_back(block);
  }
}

void BlockPool::PushIdle(BlockId block) {
  blocks_[block].older = newest_idle_;
  blocks_[block].newer = kNone;
  (newest_idle_ == kNone ? oldest_idle_ : blocks_[newest_idle_].newer) = block;
  newest_idle_ = block;
  ++num_idle_;
}

void BlockPool::RemoveIdle(BlockId block) {
  const BlockId older = blocks_[block].older;
  const BlockId newer = blocks_[block].newer;
  (older == kNone ? oldest_idle_ : blocks_[older].newer) = newer;
  (newer == kNone ? newest_idle_ : blocks_[newer].older) = older;
  --num_idle_;
}

void BlockPool::CheckInvariants(absl::Span<const uint32_t> holders) const {
  MILLRACE_CHECK(holders.size() == blocks_.size());
  uint32_t used = 0;
  uint32_t named = 0;
  for (BlockId block = 0; block < blocks_.size(); ++block) {
    MILLRACE_CHECK(blocks_[block].holders == holders[block]);
    used += holders[block] > 0;
    named += blocks_[block].named;
    if (!blocks_[block].named) continue;
    const auto it = by_name_.find(blocks_[block].name);
    MILLRACE_CHECK(it != by_name_.end() && it->second == block);
  }
  MILLRACE_CHECK(used == num_used_ && named == by_name_.size());
  uint32_t idle = 0;
  for (BlockId block = oldest_idle_; block != kNone; block = blocks_[block].newer) {
    MILLRACE_CHECK(blocks_[block].named && blocks_[block].holders == 0 && ++idle <= num_idle_);
  }
  MILLRACE_CHECK(idle == num_idle_);
  for (BlockId block : blank_) MILLRACE_CHECK(!blocks_[block].named && blocks_[block].holders == 0);
  MILLRACE_CHECK(blank_.size() + idle + used == blocks_.size());
}

uint32_t ReleasePreview::Release(absl::Span<const BlockId> table) {
  uint32_t freed = 0;
  for (BlockId block : table) {
    const uint32_t holders = pool_.holders(block);
    freed += holders == 1 || ++released_[block] == holders;
  }
  return freed;
}

}  // namespace millrace
