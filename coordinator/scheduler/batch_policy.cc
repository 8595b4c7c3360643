#include "coordinator/scheduler/batch_policy.h"

#include <algorithm>
#include <cmath>

#include "common/check.h"

namespace millrace {
namespace {

constexpr double kRounding = 1e-9;

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

  BatchFeatures FeaturesOfPick(size_t index, uint32_t rows) const;
  // Of the chunk after what `index` has planned, on top of what is picked.
  double ChunkSeconds(size_t index, uint32_t rows) const;
  void WeighDecodes();
  double DecodeWeight(size_t index) const { return decode_row_ + decode_position_ * view(index).tokens; }
  std::vector<size_t> ReadyDecodes() const;
  bool PrefillPending() const;
  uint32_t DecodeRowLimit() const;
  void PickDecodes(uint32_t row_limit);
  double PendingSeconds(double enough) const;
  double ChunkTarget(double room);
  uint32_t ChunkRows(size_t index, double target, double most) const;
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

  const SlowestStageCost cost_;
  BatchFeatures features_;  // of what is picked
  uint32_t least_chunk_rows_ = kMinChunkRows;
  double budget_;          // seconds of a slot; without costs, rows
  double decode_row_ = 1;  // seconds that a decode adds, and each position that it attends to
  double decode_position_ = 0;
  double decoding_weight_ = 0;  // of all that decode
  uint32_t decoding_ = 0;
  double decode_carry_;
};

BatchComposer::BatchComposer(const BatchSnapshot& snapshot)
    : s_(snapshot),
      entries_(snapshot.sequences.size()),
      kept_(snapshot.num_running),
      free_blocks_(snapshot.free_blocks),
      cost_(snapshot.costs),
      budget_(cost_(BatchFeatures::Prefill(0, snapshot.max_rows, false))),
      decode_carry_(snapshot.decode_carry) {
  if (!s_.costs.empty() && s_.inter_token_goal > 0) {
    budget_ = std::min(budget_, s_.inter_token_goal / s_.slots);
  }
  for (size_t i = 0; i < entries_.size(); ++i) entries_[i].blocks = view(i).blocks;
  for (size_t i = 0; i < kept_; ++i) committed_blocks_ += Outstanding(i);
}

BatchDecision BatchComposer::Compose() {
  WeighDecodes();
  PickDecodes(DecodeRowLimit());
  PickPrefills();
  // Rows kept for a prefill that could not run after all.
  if (rows_ == 0) PickDecodes(s_.max_rows);

  BatchDecision decision;
  decision.num_preempted = s_.num_running - kept_;
  decision.num_admitted = admitted_;
  decision.decode_carry = decode_carry_;
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

bool BatchComposer::PrefillPending() const {
  bool pending = entries_.size() > s_.num_running && CanAdmit(s_.num_running);
  for (size_t i = 0; i < kept_ && !pending; ++i) pending = prefilling(i);
  return pending;
}

uint32_t BatchComposer::DecodeRowLimit() const {
  if (!PrefillPending()) return s_.max_rows;
  if (s_.max_rows == 1) return s_.prefill_turn ? 0 : 1;
  return s_.max_rows - std::max(1u, s_.max_rows / 4);
}

BatchFeatures BatchComposer::FeaturesOfPick(size_t index, uint32_t rows) const {
  const bool sampled = rows == view(index).remaining();
  if (rows == 1 && sampled) return BatchFeatures::Decode(view(index).tokens);
  return BatchFeatures::Prefill(view(index).planned, rows, sampled);
}

double BatchComposer::ChunkSeconds(size_t index, uint32_t rows) const {
  BatchFeatures with = features_;
  with += FeaturesOfPick(index, rows);
  return cost_(with) - cost_(features_);
}

// Straight lines through the cost of a usual slot of decodes: a share is a sum over sequences.
void BatchComposer::WeighDecodes() {
  double positions = 0;
  for (size_t i = 0; i < kept_; ++i) {
    if (!view(i).decoding()) continue;
    ++decoding_;
    positions += view(i).tokens;
  }
  decoding_weight_ = decoding_;
  if (decoding_ == 0 || s_.costs.empty()) return;
  constexpr double kLeastShareOfRow = 0.05;
  const double rows =
      std::clamp(std::ceil(static_cast<double>(decoding_) / s_.slots), 1.0, static_cast<double>(s_.max_rows));
  BatchFeatures slot;
  slot.decode_rows = slot.sampled_rows = rows;
  const double without_context = cost_(slot);
  slot.decode_attention = positions / decoding_ * rows;
  const double seconds = cost_(slot);
  decode_position_ = std::max(0.0, (seconds - without_context) / slot.decode_attention);
  decode_row_ =
      std::max((without_context - cost_(BatchFeatures())) / rows, kLeastShareOfRow * seconds / rows);
  decoding_weight_ = decode_row_ * decoding_ + decode_position_ * positions;
}

std::vector<size_t> BatchComposer::ReadyDecodes() const {
  std::vector<size_t> ready;
  for (size_t i = 0; i < kept_; ++i) {
    if (view(i).decode_ready()) ready.push_back(i);
  }
  std::sort(ready.begin(), ready.end(), [this](size_t a, size_t b) {
    return view(a).ready_order != view(b).ready_order ? view(a).ready_order < view(b).ready_order : a < b;
  });
  return ready;
}

void BatchComposer::PickDecodes(uint32_t row_limit) {
  const std::vector<size_t> ready = ReadyDecodes();
  if (ready.empty()) return;
  double ready_weight = 0;
  for (size_t index : ready) ready_weight += DecodeWeight(index);
  const double usual = decoding_weight_ / decoding_;
  const double share = decoding_weight_ / s_.slots + s_.decode_carry * usual;
  const double spread = ready_weight / (s_.slots - s_.in_flight);
  const double target = std::min(share, spread);
  double taken = 0;
  for (size_t index : ready) {
    const double weight = DecodeWeight(index);
    if (rows_ >= row_limit || (taken > 0 && taken + weight / 2 > target * (1 + kRounding))) break;
    if (preempted(index) || FitBlocks(index, 1) == 0) continue;
    Pick(index, 1);
    taken += weight;
  }
  // Only what rounding leaves: what was not ready, or had no room, is no debt to later slots.
  const double left = (share - taken) / usual;
  decode_carry_ = target == share && std::abs(left) <= 0.5 + kRounding ? left : 0;
}

// Of prompts that can run now, up to about `enough`. Counts them whole, so that the chunks of one prompt do
// not shrink as it advances.
double BatchComposer::PendingSeconds(double enough) const {
  const double nothing = cost_(BatchFeatures());
  const auto seconds = [&](size_t i) {
    return cost_(BatchFeatures::Prefill(view(i).cached, view(i).tokens - view(i).cached, true)) - nothing;
  };
  double pending = 0;
  for (size_t i = 0; i < kept_ && pending < enough; ++i) {
    if (prefilling(i)) pending += seconds(i);
  }
  uint64_t free = free_blocks_;
  uint64_t needed = committed_blocks_;
  const size_t end = std::min(entries_.size(), s_.num_running + (s_.max_running_sequences - kept_));
  for (size_t i = s_.num_running; i < end && pending < enough; ++i) {
    needed += Outstanding(i) + view(i).idle_blocks;
    if (kept_ < s_.num_running || view(i).in_flight || needed > free) break;
    pending += seconds(i);
  }
  return pending;
}

// Seconds that this slot's chunks are to take together, of `room`. Sets the least rows of one.
double BatchComposer::ChunkTarget(double room) {
  const uint32_t pieces = s_.num_stages == 1 ? 1 : 2 * s_.num_stages;
  const double spread = PendingSeconds(room * pieces) / pieces;
  // Beside decodes a small chunk is no waste: the microbatch runs anyway, and equal slots are worth more.
  const bool beside_decodes = !s_.costs.empty() && features_.decode_rows > 0;
  least_chunk_rows_ = beside_decodes && spread < room ? 1 : kMinChunkRows;
  const double least = cost_(BatchFeatures::Prefill(0, least_chunk_rows_, false)) - cost_(BatchFeatures());
  // Positive even if a model that has learnt from little says otherwise.
  return std::clamp(std::max(spread, least), kRounding * room, room);
}

// Equal chunks of about `target` seconds, none above `most`, but no scraps.
uint32_t BatchComposer::ChunkRows(size_t index, double target, double most) const {
  const uint32_t remaining = view(index).remaining();
  uint32_t high = std::min(remaining, Room());
  uint32_t low = std::min(high, least_chunk_rows_);
  const double whole = ChunkSeconds(index, remaining);
  // The whole room is used up; less than that is cut evenly.
  const double pieces = target < most * (1 - kRounding) ? std::round(whole / target) : 1;
  const double chunks = std::min(pieces, std::floor(1.0 * remaining / least_chunk_rows_));
  const double seconds = std::min(whole / std::max(1.0, chunks), most) * (1 - kRounding);
  while (low < high) {
    const uint32_t middle = low + (high - low) / 2;
    if (ChunkSeconds(index, middle) < seconds) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

void BatchComposer::PickPrefills() {
  if (!PrefillPending()) return;
  const double before = cost_(features_);
  const double room = std::max(budget_ - before, budget_ / 4);
  const double target = ChunkTarget(room);
  double taken = 0;
  bool picked = false;
  for (size_t i = 0; i < entries_.size() && taken < target * (1 - kRounding) && Room() > 0; ++i) {
    if (!prefilling(i)) continue;
    if (waiting(i) && !CanAdmit(i)) break;
    uint32_t rows = ChunkRows(i, target - taken, room - taken);
    if (picked && rows < std::min(view(i).remaining(), least_chunk_rows_)) break;
    if (waiting(i)) {
      ++admitted_;
      free_blocks_ -= view(i).idle_blocks;
      committed_blocks_ += Outstanding(i);
    }
    rows = FitBlocks(i, rows);
    if (rows == 0) continue;
    Pick(i, rows);
    picked = true;
    taken = cost_(features_) - before;
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
  return free_blocks_ >=
         uint64_t{committed_blocks_} + Outstanding(index) + view(index).idle_blocks + AdmissionMargin();
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
  free_blocks_ += victim.blocks - view(kept_).blocks + view(kept_).freed_blocks;
  rows_ -= victim.rows;
  const bool was_picked = victim.rows > 0;
  victim = Entry();
  if (!was_picked) return;
  features_ = BatchFeatures();
  for (size_t index : order_) {
    if (entries_[index].rows > 0) features_ += FeaturesOfPick(index, entries_[index].rows);
  }
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
  features_ += FeaturesOfPick(index, rows);
  order_.push_back(index);
}

}  // namespace

BatchDecision DecideBatch(const BatchSnapshot& snapshot) {
  MILLRACE_CHECK(snapshot.in_flight < snapshot.slots);
  MILLRACE_CHECK(snapshot.num_running <= snapshot.sequences.size());
  return BatchComposer(snapshot).Compose();
}

}  // namespace millrace
