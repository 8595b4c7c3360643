#include "coordinator/scheduler/batch_policy.h"

#include <algorithm>

#include "common/check.h"

namespace millrace {
namespace {

uint32_t CeilDiv(uint32_t a, uint32_t b) {
  return a / b + (a % b != 0);
}

// One decision in the making.
class BatchComposer {
 public:
  explicit BatchComposer(const BatchSnapshot& snapshot);
  BatchDecision Compose();

 private:
  struct Entry {
    uint32_t blocks = 0;  // held, with what this microbatch gives it
    uint32_t rows = 0;    // picked
  };

  const SequenceView& view(size_t index) const { return s_.sequences[index]; }
  bool waiting(size_t index) const { return index >= s_.num_running; }
  bool preempted(size_t index) const { return index >= kept_ && !waiting(index); }
  bool prefilling(size_t index) const { return !preempted(index) && !view(index).decoding(); }
  uint32_t BlocksFor(uint32_t tokens) const { return CeilDiv(tokens, s_.block_tokens); }
  uint32_t Room() const { return s_.max_rows - rows_; }

  uint32_t PendingPrefillTokens() const;
  uint32_t DecodeRowLimit() const;
  uint32_t DecodeShare(uint32_t ready) const;
  void PickDecodes(uint32_t row_limit);
  void PickPrefills();
  bool CanAdmit(size_t index) const;
  uint32_t AdmissionMargin() const;
  uint32_t FitBlocks(size_t index, uint32_t rows);
  void PreemptYoungest();
  void Pick(size_t index, uint32_t rows);
  uint32_t Outstanding(size_t index) const;

  const BatchSnapshot& s_;
  std::vector<Entry> entries_;
  std::vector<size_t> order_;  // of picks
  size_t kept_;                // running sequences from this index on are preempted
  size_t admitted_ = 0;
  uint32_t free_blocks_;
  uint32_t committed_blocks_ = 0;  // that running prefills will still need
  uint32_t rows_ = 0;
};

BatchComposer::BatchComposer(const BatchSnapshot& snapshot)
    : s_(snapshot),
      entries_(snapshot.sequences.size()),
      kept_(snapshot.num_running),
      free_blocks_(snapshot.free_blocks) {
  for (size_t i = 0; i < entries_.size(); ++i) entries_[i].blocks = view(i).blocks;
  for (size_t i = 0; i < kept_; ++i) committed_blocks_ += Outstanding(i);
}

BatchDecision BatchComposer::Compose() {
  PickDecodes(DecodeRowLimit());
  PickPrefills();
  // Rows kept for a prefill that could not run after all.
  if (rows_ == 0) PickDecodes(s_.max_rows);

  BatchDecision decision;
  decision.num_preempted = s_.num_running - kept_;
  decision.num_admitted = admitted_;
  for (size_t index : order_) {
    if (entries_[index].rows == 0) continue;
    decision.picks.push_back({index, entries_[index].rows});
    decision.has_prefill |= !view(index).decode_ready();
  }
  return decision;
}

// Blocks that a running prefill lacks for its known tokens and the first it will generate.
uint32_t BatchComposer::Outstanding(size_t index) const {
  if (view(index).decoding()) return 0;
  const uint32_t needed = BlocksFor(view(index).tokens + 1);
  return needed > entries_[index].blocks ? needed - entries_[index].blocks : 0;
}

uint32_t BatchComposer::DecodeRowLimit() const {
  bool pending = entries_.size() > s_.num_running && CanAdmit(s_.num_running);
  for (size_t i = 0; i < kept_ && !pending; ++i) pending = prefilling(i);
  if (!pending) return s_.max_rows;
  if (s_.max_rows == 1) return s_.prefill_turn ? 0 : 1;
  return s_.max_rows - std::max(1u, s_.max_rows / 4);
}

// Never more than an even share of all decoding sequences; fewer where more slots are free than that would
// fill.
uint32_t BatchComposer::DecodeShare(uint32_t ready) const {
  uint32_t decoding = 0;
  for (size_t i = 0; i < kept_; ++i) decoding += view(i).decoding();
  return std::min(CeilDiv(decoding, s_.max_in_flight), CeilDiv(ready, s_.max_in_flight - s_.in_flight));
}

void BatchComposer::PickDecodes(uint32_t row_limit) {
  std::vector<size_t> ready;
  for (size_t i = 0; i < kept_; ++i) {
    if (view(i).decode_ready()) ready.push_back(i);
  }
  std::sort(ready.begin(), ready.end(), [this](size_t a, size_t b) {
    return view(a).ready_order != view(b).ready_order ? view(a).ready_order < view(b).ready_order : a < b;
  });
  const uint32_t limit = std::min(row_limit, DecodeShare(static_cast<uint32_t>(ready.size())));
  for (size_t index : ready) {
    if (rows_ >= limit) break;
    if (!preempted(index) && FitBlocks(index, 1) == 1) Pick(index, 1);
  }
}

// Counts whole prompts, so that the chunks of one prompt do not shrink as it advances.
uint32_t BatchComposer::PendingPrefillTokens() const {
  const uint64_t enough = uint64_t{s_.max_rows} * 2 * s_.num_stages;
  uint64_t tokens = 0;
  for (size_t i = 0; i < entries_.size() && tokens < enough; ++i) {
    if (prefilling(i)) tokens += view(i).tokens;
  }
  return static_cast<uint32_t>(std::min(tokens, enough));
}

// Equal chunks of about `target` rows, so that none is a scrap.
uint32_t ChunkRows(uint32_t remaining, uint32_t target) {
  const uint32_t chunks = std::max(1u, remaining / std::max(target, kMinChunkRows));
  return CeilDiv(remaining, chunks);
}

void BatchComposer::PickPrefills() {
  const uint32_t pieces = s_.num_stages == 1 ? 1 : 2 * s_.num_stages;
  const uint32_t target = std::max(kMinChunkRows, CeilDiv(PendingPrefillTokens(), pieces));
  uint32_t taken = 0;
  for (size_t i = 0; i < entries_.size() && taken < target && Room() > 0; ++i) {
    if (!prefilling(i)) continue;
    if (waiting(i) && !CanAdmit(i)) break;
    const uint32_t remaining = view(i).remaining();
    uint32_t rows = std::min(Room(), ChunkRows(remaining, target - taken));
    if (taken > 0 && rows < std::min(remaining, kMinChunkRows)) break;
    if (waiting(i)) {
      ++admitted_;
      committed_blocks_ += Outstanding(i);
    }
    rows = FitBlocks(i, rows);
    if (rows == 0) continue;
    Pick(i, rows);
    taken += rows;
  }
}

uint32_t BatchComposer::AdmissionMargin() const {
  const uint32_t running = static_cast<uint32_t>(kept_ + admitted_);
  return running == 0 ? 0 : std::max(1u, std::min(running, s_.num_blocks / 8));
}

bool BatchComposer::CanAdmit(size_t index) const {
  // A sequence preempted now may stand before this one.
  if (kept_ < s_.num_running || view(index).in_flight) return false;
  if (kept_ + admitted_ >= s_.max_running_sequences) return false;
  return free_blocks_ >= uint64_t{committed_blocks_} + BlocksFor(view(index).tokens + 1) + AdmissionMargin();
}

// How many of `rows` have blocks; preempts younger ones only if it would be none.
uint32_t BatchComposer::FitBlocks(size_t index, uint32_t rows) {
  const auto capacity = [&] {
    return uint64_t{entries_[index].blocks + free_blocks_} * s_.block_tokens - view(index).planned;
  };
  while (capacity() == 0 && kept_ > index + 1 && !waiting(index)) PreemptYoungest();
  return static_cast<uint32_t>(std::min<uint64_t>(rows, capacity()));
}

void BatchComposer::PreemptYoungest() {
  committed_blocks_ -= Outstanding(kept_ - 1);
  --kept_;
  Entry& victim = entries_[kept_];
  free_blocks_ += victim.blocks;
  rows_ -= victim.rows;
  victim = Entry();
}

void BatchComposer::Pick(size_t index, uint32_t rows) {
  Entry& entry = entries_[index];
  const uint32_t needed = BlocksFor(view(index).planned + rows);
  const uint32_t before = Outstanding(index);
  if (needed > entry.blocks) {
    free_blocks_ -= needed - entry.blocks;
    entry.blocks = needed;
  }
  committed_blocks_ -= before - Outstanding(index);
  entry.rows = rows;
  rows_ += rows;
  order_.push_back(index);
}

}  // namespace

BatchDecision DecideBatch(const BatchSnapshot& snapshot) {
  MILLRACE_CHECK(snapshot.in_flight < snapshot.max_in_flight);
  MILLRACE_CHECK(snapshot.num_running <= snapshot.sequences.size());
  return BatchComposer(snapshot).Compose();
}

}  // namespace millrace
