#include "kernels/cpu/attention_plan.h"

#include <algorithm>

#include "kernels/cpu/tile_sizes.h"
#include "kernels/cpu/vec.h"

namespace millrace::kernels::cpu {
namespace {

// Reading a position takes about as long as two queries' work on it.
double Work(const AttentionItem& item, size_t positions) {
  return static_cast<double>(item.queries + 2) * static_cast<double>(positions);
}

size_t SplitsOf(const AttentionItem& item) {
  return (item.positions + kSplitTokens - 1) / kSplitTokens;
}

double WorkOfSplits(const AttentionItem& item, size_t begin, size_t end) {
  return Work(item, std::min(end * kSplitTokens, item.positions) - begin * kSplitTokens);
}

double TotalWork(const PagedAttentionArgs& args) {
  double work = 0;
  AttentionItems items(args);
  for (AttentionItem item; items.Next(&item);) work += Work(item, item.positions);
  return work;
}

double Cut(double work, size_t index, size_t count) {
  return work * static_cast<double>(index) / static_cast<double>(count);
}

}  // namespace

AttentionItems::AttentionItems(const PagedAttentionArgs& args)
    : args_(args), group_(args.heads / args.kv.kv_heads) {}

bool AttentionItems::Next(AttentionItem* item) {
  if (segment_ == args_.segments.size()) return false;
  const KvSegment& segment = args_.segments[segment_];
  const size_t all = segment.rows * group_;
  item->segment = segment_;
  item->kv_head = kv_head_;
  item->first_query = first_query_;
  item->queries = std::min(kItemQueries, all - first_query_);
  first_query_ += item->queries;
  item->positions = segment.first_position + (first_query_ - 1) / group_ + 1;
  if (first_query_ < all) return true;
  first_query_ = 0;
  if (++kv_head_ < args_.kv.kv_heads) return true;
  kv_head_ = 0;
  ++segment_;
  return true;
}

SharedItems::SharedItems(const PagedAttentionArgs& args, WorkShare share) : items_(args) {
  const double work = TotalWork(args);
  begin_ = Cut(work, share.index, share.count);
  end_ = Cut(work, share.index + 1, share.count);
}

// An item belongs to the share in which its middle lies.
bool SharedItems::Next(AttentionItem* item) {
  while (passed_ < end_ && items_.Next(item)) {
    const double work = Work(*item, item->positions);
    const double middle = passed_ + work / 2;
    passed_ += work;
    if (middle >= end_) return false;
    if (middle >= begin_) return true;
  }
  return false;
}

bool SplitsPay(const PagedAttentionArgs& args, size_t shares) {
  // What the second phase and its joins cost.
  constexpr double kPhaseWork = 2000;
  if (shares < 2) return false;
  double most = 0;
  bool splits = false;
  for (size_t s = 0; s < shares; ++s) {
    double work = 0;
    SharedItems items(args, {s, shares});
    for (AttentionItem item; items.Next(&item);) {
      work += Work(item, item.positions);
      splits = splits || item.positions > kSplitTokens;
    }
    most = std::max(most, work);
  }
  const double even = TotalWork(args) / static_cast<double>(shares);
  return splits && most > 1.1 * even + kPhaseWork;
}

AttentionRound NextRound(const AttentionRound& last) {
  AttentionRound round = last;
  round.begin = last.end;
  round.number = last.number + 1;
  size_t room = last.shares * kWaitingQueries;
  size_t passed = 0;
  AttentionItems items(*last.args);
  for (AttentionItem item; items.Next(&item);) {
    const size_t begin = std::max(round.begin, passed);
    passed += SplitsOf(item);
    if (begin >= passed) continue;
    const size_t splits = std::min(passed - begin, room / item.queries);
    round.end = begin + splits;
    room -= splits * item.queries;
    if (round.end < passed) break;
  }
  return round;
}

RoundParts::RoundParts(const AttentionRound& round) : round_(round), items_(*round.args) {}

bool RoundParts::Next(AttentionPart* part) {
  while (passed_ < round_.end && items_.Next(&part->item)) {
    const size_t first = passed_;
    passed_ += SplitsOf(part->item);
    if (passed_ <= round_.begin) continue;
    part->begin = std::max(first, round_.begin) - first;
    part->end = std::min(passed_, round_.end) - first;
    part->slot = slot_;
    slot_ += (part->end - part->begin) * part->item.queries;
    return true;
  }
  return false;
}

SharedParts::SharedParts(const AttentionRound& round, WorkShare share) : parts_(round) {
  double work = 0;
  RoundParts parts(round);
  for (AttentionPart part; parts.Next(&part);) work += WorkOfSplits(part.item, part.begin, part.end);
  begin_ = Cut(work, share.index, share.count);
  end_ = Cut(work, share.index + 1, share.count);
}

bool SharedParts::Next(AttentionPart* part) {
  AttentionPart whole;
  while (passed_ < end_ && parts_.Next(&whole)) {
    *part = whole;
    part->end = part->begin;
    for (size_t split = whole.begin; split < whole.end; ++split) {
      const double work = WorkOfSplits(whole.item, split, split + 1);
      const double middle = passed_ + work / 2;
      passed_ += work;
      if (middle < begin_) {
        part->begin = split + 1;
        part->slot += whole.item.queries;
      }
      if (middle < end_) part->end = split + 1;
    }
    if (part->begin < part->end) return true;
  }
  return false;
}

size_t AttentionResultFloats(size_t head_size) {
  return (head_size + kVecLanes - 1) / kVecLanes * kVecLanes + kVecLanes;
}

namespace {

size_t ShareFloats(size_t result_floats) {
  return (kItemQueries + kMaxAttentionQueries) * result_floats + kMaxAttentionQueries * kSplitTokens;
}

}  // namespace

size_t AttentionScratchSize(size_t head_size, size_t shares) {
  const size_t result = AttentionResultFloats(head_size);
  const size_t rounds = shares > 1 ? (shares * kWaitingQueries + 2 * kItemQueries) * result : 0;
  return shares * ShareFloats(result) + rounds;
}

AttentionScratch::AttentionScratch(const PagedAttentionArgs& args, size_t shares)
    : base(args.scratch),
      shares(shares),
      result_floats(AttentionResultFloats(args.kv.head_size)),
      share_floats(ShareFloats(result_floats)) {}

float* AttentionScratch::states(size_t share) const {
  return base + share * share_floats;
}
float* AttentionScratch::fresh(size_t share) const {
  return states(share) + kItemQueries * result_floats;
}
float* AttentionScratch::scores(size_t share) const {
  return fresh(share) + kMaxAttentionQueries * result_floats;
}
float* AttentionScratch::waiting() const {
  return base + shares * share_floats;
}
float* AttentionScratch::open(size_t round) const {
  return waiting() + (shares * kWaitingQueries + round % 2 * kItemQueries) * result_floats;
}

}  // namespace millrace::kernels::cpu
