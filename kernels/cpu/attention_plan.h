// How the work of one PagedAttention call is cut and shared. The cuts never change a result.
//
// An item is up to kItemQueries queries of one KV head of one segment. Where there are items enough, threads
// take whole items. Where there are few and contexts are long, they take splits of items, round by round:
// first each split by itself (attention_splits), then the results of the splits in rising order
// (attention_merge), so that memory does not grow with the context.
//
// Not inline and no templates: files of instruction-set flags call these (see vec.h).
#pragma once

#include <cstddef>

#include "kernels/paged_attention.h"
#include "kernels/work_share.h"

namespace millrace::kernels::cpu {

// Queries of a KV head are numbered row by row: query i is head i % group of row i / group of the segment,
// group = heads / kv_heads.
struct AttentionItem {
  size_t segment = 0;
  size_t kv_head = 0;
  size_t first_query = 0;
  size_t queries = 0;
  size_t positions = 0;  // that the last of them attends to
};

// All items of a call, in a fixed order.
class AttentionItems {
 public:
  explicit AttentionItems(const PagedAttentionArgs& args);
  bool Next(AttentionItem* item);

 private:
  const PagedAttentionArgs& args_;
  const size_t group_;
  size_t segment_ = 0;
  size_t kv_head_ = 0;
  size_t first_query_ = 0;
};

// Those of one share: neighbours, and about as much work in every share.
class SharedItems {
 public:
  SharedItems(const PagedAttentionArgs& args, WorkShare share);
  bool Next(AttentionItem* item);

 private:
  AttentionItems items_;
  double passed_ = 0;  // work of the items before
  double begin_ = 0;
  double end_ = 0;
};

// Whether whole items leave some of the shares with much less to do than others.
bool SplitsPay(const PagedAttentionArgs& args, size_t shares);

// Some of the splits of all items, numbered item by item.
struct AttentionRound {
  const PagedAttentionArgs* args = nullptr;
  size_t shares = 0;  // that the scratch has room for
  size_t begin = 0;
  size_t end = 0;
  size_t number = 0;
};
// The round that begins where `last` ended; empty when there is no more.
AttentionRound NextRound(const AttentionRound& last);

// Splits [begin, end) of an item within a round; their results begin with number `slot` of those that wait,
// a number for each query of each split.
struct AttentionPart {
  AttentionItem item;
  size_t begin = 0;
  size_t end = 0;
  size_t slot = 0;
};
class RoundParts {
 public:
  explicit RoundParts(const AttentionRound& round);
  bool Next(AttentionPart* part);

 private:
  const AttentionRound& round_;
  AttentionItems items_;
  size_t passed_ = 0;  // splits of the items before
  size_t slot_ = 0;
};

// One share's part of each part: neighbouring splits, and about as much work in every share.
class SharedParts {
 public:
  SharedParts(const AttentionRound& round, WorkShare share);
  bool Next(AttentionPart* part);

 private:
  RoundParts parts_;
  double passed_ = 0;
  double begin_ = 0;
  double end_ = 0;
};

// Where each thing is in PagedAttentionArgs.scratch. A result is the weighted values of one query, then the
// largest score and the sum, at result_floats - 16 and the float after.
struct AttentionScratch {
  AttentionScratch(const PagedAttentionArgs& args, size_t shares);
  float* states(size_t share) const;  // [kItemQueries] results
  float* fresh(size_t share) const;   // [kMaxAttentionQueries] results
  float* scores(size_t share) const;  // [kMaxAttentionQueries, kSplitTokens]
  float* waiting() const;             // [shares * kWaitingQueries] results
  float* open(size_t round) const;    // [kItemQueries] results: of the item that a round ended within

  float* base;
  size_t shares;
  size_t result_floats;
  size_t share_floats;
};
size_t AttentionResultFloats(size_t head_size);
size_t AttentionScratchSize(size_t head_size, size_t shares);

}  // namespace millrace::kernels::cpu
