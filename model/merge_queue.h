// The merges that may apply in one long piece of text, in the order in which BPE applies them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <queue>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace millrace {

// One rule of a vocabulary: `left` before `right` becomes `result`. The rank names the rule.
struct MergeRule {
  uint32_t rank;
  uint32_t left;
  uint32_t right;
  uint32_t result;
};

struct MergeCandidate {
  MergeRule rule;
  uint32_t position;  // of the left symbol
};

// Lowest rank first, then lowest position. Thread: one.
//
// Positions are kept by rank. Those of one rank mostly arrive in ascending order, and then cost no more than
// an append and a read: on a long run of one letter this is many times faster than one heap of all
// candidates. Any other order is right, too, in O(log n) for each.
class MergeQueue {
 public:
  void Push(const MergeRule& rule, uint32_t position);
  std::optional<MergeCandidate> Pop();

 private:
  template <typename T>
  using MinHeap = std::priority_queue<T, std::vector<T>, std::greater<T>>;

  struct Bucket {
    MergeRule rule;
    std::vector<uint32_t> ascending;  // the first `taken` are gone
    size_t taken = 0;
    MinHeap<uint32_t> late;  // what came after a higher position
    bool queued = false;     // is in ranks_

    bool empty() const { return taken == ascending.size() && late.empty(); }
    void Push(uint32_t position);
    uint32_t Pop();
  };

  std::vector<Bucket> buckets_;
  absl::flat_hash_map<uint32_t, uint32_t> bucket_of_rank_;
  MinHeap<uint64_t> ranks_;  // rank << 32 | bucket
};

}  // namespace millrace
