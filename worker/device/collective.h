// What the shards of one stage do together: wait for each other, and add their parts of a sum.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"

namespace millrace {

// One shard's end of a group of `size` shards, which all make the same calls in the same order. Every call
// that waits returns ABORTED, in every shard, once any shard called Abort: none is left waiting for one that
// failed. Thread: the shard's, but for Abort and spent_ns.
class Collective {
 public:
  virtual ~Collective() = default;
  virtual uint32_t rank() const = 0;  // below size()
  virtual uint32_t size() const = 0;

  // Returns when every shard has called it; what any wrote to host memory before, all see afterwards.
  virtual absl::Status Barrier() = 0;

  // Where the shard puts the sums of segment `segment` of a product, [rows, columns] float32, before
  // AllReduce, and until then. Each segment is one shard's: shard r of T has those of
  // WorkShare{r, T}.Of(segments of the sum). The next segment's place is partial_stride() floats on.
  // REQUIRES: segment < the group's segments.
  virtual float* Partial(uint32_t segment) = 0;
  virtual size_t partial_stride() const = 0;
  virtual size_t max_rows() const = 0;  // of one AllReduce

  // residual = residual + segment 0 + segment 1 + ..., added from left to right, in every shard's eyes.
  // `residual` is [rows, columns] float32: the same memory for all shards where ops work in host memory, the
  // shard's own copy on other devices, where the sum is only enqueued (after what is enqueued, before what
  // will be). REQUIRES: rows <= max_rows(), segments at least size(), segments and columns at most the
  // group's; all shards give the same.
  struct Sum {
    float* residual = nullptr;
    size_t rows = 0;
    size_t columns = 0;
    uint32_t segments = 0;
  };
  virtual absl::Status AllReduce(const Sum& sum) = 0;

  // Ends the group for good. Thread: any.
  virtual void Abort() = 0;

  // Time that this shard's thread has spent in Barrier and AllReduce. Thread: any.
  virtual int64_t spent_ns() const = 0;
};

}  // namespace millrace
