// The KV blocks of the sequences on one ring: finds what is cached of a sequence, and names what it fills.
#pragma once

#include <cstdint>

#include "absl/types/span.h"
#include "coordinator/scheduler/block_hash.h"
#include "coordinator/scheduler/block_pool.h"
#include "coordinator/scheduler/sequence.h"

namespace millrace {

struct SequenceBlocksOptions {
  uint32_t num_blocks = 0;
  uint32_t block_tokens = 1;  // at least 1
  bool prefix_cache = true;   // false: nothing is named, so nothing is found
  BlockHashKey key;
};

// Thread: engine.
class SequenceBlocks {
 public:
  SequenceBlocks() = default;
  explicit SequenceBlocks(const SequenceBlocksOptions& options);

  const BlockPool& pool() const { return pool_; }
  uint32_t BlocksFor(uint32_t tokens) const;

  // How many blocks a waiting sequence would find if it started now; of these, `*idle`: how many nobody
  // holds.
  uint32_t CountCached(Sequence* sequence, uint32_t* idle) const;

  // Starts a waiting sequence behind the blocks that it finds. `change`: see Sequence::since().
  void Start(Sequence* sequence, uint64_t change);

  // Blocks for the next `rows` positions. REQUIRES: there are enough.
  void Grow(Sequence* sequence, uint32_t rows);

  // Names the blocks that a running sequence's planned positions fill. From the next microbatch on others may
  // read them, not before: call it when all segments of a microbatch are planned.
  void NameFull(Sequence* sequence);

  void Release(Sequence* sequence) { pool_.Release(sequence->mutable_blocks()); }

  // For tests: CHECKs the books against the tables of all sequences that hold blocks.
  void CheckInvariants(absl::Span<Sequence* const> running) const;

 private:
  absl::Span<const BlockHash> FindCached(Sequence* sequence, uint32_t* idle) const;

  SequenceBlocksOptions options_;
  BlockPool pool_;
};

}  // namespace millrace
