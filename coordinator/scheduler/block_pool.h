// The KV blocks: how many sequences hold each, which of them can be found again by their content, and which
// are given next.
//
// A block is held by one sequence or by several that begin the same. Full ones get a name (block_hash.h),
// under which later sequences find them. One that nobody holds any more keeps its content as long as its
// place is not needed: it counts as free, and the one unused for longest is given away first.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/types/span.h"
#include "common/ids.h"
#include "coordinator/scheduler/block_hash.h"

namespace millrace {

// Thread: engine. Deterministic. Of blocks that hold nothing it gives the one that was freed last, so that a
// small load touches little memory.
//
// A sequence's table names its full blocks in order, each after the one before it, and holds all of them. So
// whoever holds a named block holds those before it, and as tables are released from the back, a block that
// nobody holds went unused no later than those before it: it is given away before them.
class BlockPool {
 public:
  BlockPool() = default;
  explicit BlockPool(uint32_t num_blocks);

  uint32_t num_blocks() const { return static_cast<uint32_t>(blocks_.size()); }
  uint32_t num_used() const { return num_used_; }  // held
  uint32_t num_free() const { return num_blocks() - num_used_; }
  uint32_t num_cached() const { return num_idle_; }  // of the free ones, those that can still be found
  uint32_t holders(BlockId block) const { return blocks_[block].holders; }

  // Appends `count` free blocks to `table`, or changes nothing and returns false if there are fewer.
  bool Allocate(uint32_t count, std::vector<BlockId>* table);

  // Lets go of every block of `table` and empties it. REQUIRES: all of them are held.
  void Release(std::vector<BlockId>* table);

  // `*block` is, or will be before anything planned later runs, full of what `name` says; its table's former
  // blocks are named. If another has the name, that one takes its place in the table and `*block` is free:
  // nothing that is planned later may use it.
  // REQUIRES: `*block` is held by one table and has no name.
  void Name(const BlockHash& name, BlockId* block);

  // How many of the names, from the first on, are those of blocks; of these, `*free`: how many nobody holds.
  uint32_t Find(absl::Span<const BlockHash> names, uint32_t* free) const;

  // Appends the blocks of these names to `table`. REQUIRES: all are there.
  void Share(absl::Span<const BlockHash> names, std::vector<BlockId>* table);

  // For tests: CHECKs the books against themselves and against `holders`, by block.
  void CheckInvariants(absl::Span<const uint32_t> holders) const;

 private:
  static constexpr BlockId kNone = UINT32_MAX;
  struct Block {
    uint32_t holders = 0;
    bool named = false;
    BlockHash name;
    BlockId older = kNone;  // neighbours among the idle ones: named, held by nobody
    BlockId newer = kNone;
  };

  BlockId TakeFree();
  void Hold(BlockId block);
  void LetGo(BlockId block);
  void PushIdle(BlockId block);
  void RemoveIdle(BlockId block);

  std::vector<Block> blocks_;
  std::vector<BlockId> blank_;  // held by nobody, without a name
  absl::flat_hash_map<BlockHash, BlockId> by_name_;
  BlockId oldest_idle_ = kNone;
  BlockId newest_idle_ = kNone;
  uint32_t num_idle_ = 0;
  uint32_t num_used_ = 0;
};

// Counts what releasing one table after another would free. The pool must not change meanwhile. Thread:
// engine.
class ReleasePreview {
 public:
  explicit ReleasePreview(const BlockPool& pool) : pool_(pool) {}
  // Blocks that only this table and those given before hold.
  uint32_t Release(absl::Span<const BlockId> table);

 private:
  const BlockPool& pool_;
  absl::flat_hash_map<BlockId, uint32_t> released_;  // how often, of those with several holders
};

}  // namespace millrace
