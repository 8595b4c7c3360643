#include "coordinator/scheduler/sequence_blocks.h"

#include <vector>

#include "common/check.h"

namespace millrace {

SequenceBlocks::SequenceBlocks(const SequenceBlocksOptions& options)
    : options_(options), pool_(options.num_blocks) {
  MILLRACE_CHECK(options_.block_tokens > 0);
}

uint32_t SequenceBlocks::BlocksFor(uint32_t tokens) const {
  return tokens / options_.block_tokens + (tokens % options_.block_tokens != 0);
}

absl::Span<const BlockHash> SequenceBlocks::FindCached(Sequence* sequence, uint32_t* idle) const {
  *idle = 0;
  if (!options_.prefix_cache) return {};
  const uint32_t most = sequence->SharableBlocks(options_.block_tokens);
  const auto names = sequence->BlockNames(options_.key, options_.block_tokens, most);
  return names.first(pool_.Find(names, idle));
}

uint32_t SequenceBlocks::CountCached(Sequence* sequence, uint32_t* idle) const {
  return static_cast<uint32_t>(FindCached(sequence, idle).size());
}

void SequenceBlocks::Start(Sequence* sequence, uint64_t change) {
  uint32_t idle = 0;
  const auto names = FindCached(sequence, &idle);
  pool_.Share(names, sequence->mutable_blocks());
  sequence->Start(change, static_cast<uint32_t>(names.size()) * options_.block_tokens, options_.block_tokens);
}

void SequenceBlocks::Grow(Sequence* sequence, uint32_t rows) {
  const uint32_t needed = BlocksFor(sequence->planned() + rows);
  const uint32_t held = static_cast<uint32_t>(sequence->blocks().size());
  if (needed > held) MILLRACE_CHECK(pool_.Allocate(needed - held, sequence->mutable_blocks()));
}

void SequenceBlocks::NameFull(Sequence* sequence) {
  const uint32_t full = sequence->planned() / options_.block_tokens;
  if (!options_.prefix_cache || sequence->named_blocks() == full) return;
  const auto names = sequence->BlockNames(options_.key, options_.block_tokens, full);
  for (uint32_t i = sequence->named_blocks(); i < full; ++i) {
    pool_.Name(names[i], &(*sequence->mutable_blocks())[i]);
  }
  sequence->set_named_blocks(full);
}

void SequenceBlocks::CheckInvariants(absl::Span<Sequence* const> running) const {
  std::vector<uint32_t> holders(pool_.num_blocks(), 0);
  for (const Sequence* sequence : running) {
    MILLRACE_CHECK(sequence->blocks().size() == BlocksFor(sequence->planned()));
    for (BlockId block : sequence->blocks()) {
      MILLRACE_CHECK(block < holders.size());
      ++holders[block];
    }
  }
  pool_.CheckInvariants(holders);
  for (const Sequence* sequence : running) {
    // Blocks that may be written belong to it alone, and who holds a block holds those before it.
    uint32_t least = UINT32_MAX;
    for (size_t i = 0; i < sequence->blocks().size(); ++i) {
      const uint32_t count = holders[sequence->blocks()[i]];
      MILLRACE_CHECK(count <= least && (count == 1 || i < sequence->named_blocks()));
      least = count;
    }
  }
}

}  // namespace millrace
