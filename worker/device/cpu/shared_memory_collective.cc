#include "worker/device/cpu/shared_memory_collective.h"

#include <atomic>
#include <limits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/clock.h"
#include "common/status_macros.h"
#include "kernels/work_share.h"

namespace millrace {
namespace {

constexpr size_t kCacheLineFloats = 16;

// Floats of one segment's sums, in whole cache lines so that no two shards write to the same.
size_t PartialStride(const CollectiveOptions& options) {
  const size_t floats = size_t{options.max_rows} * options.columns;
  return (floats + kCacheLineFloats - 1) / kCacheLineFloats * kCacheLineFloats;
}

}  // namespace

class SharedMemoryGroup::End final : public Collective {
 public:
  End(SharedMemoryGroup& group, uint32_t rank, uint32_t size, const kernels::Backend& backend)
      : group_(group), rank_(rank), size_(size), backend_(backend) {
    for (uint32_t i = 0; i < group.options_.segments; ++i) partials_.push_back(Partial(i));
  }

  uint32_t rank() const override { return rank_; }
  uint32_t size() const override { return size_; }

  absl::Status Barrier() override {
    const int64_t begin = SteadyNanos();
    const absl::Status status = Meet();
    Count(begin);
    return status;
  }

  float* Partial(uint32_t segment) override {
    MILLRACE_CHECK(segment < group_.options_.segments);
    return reinterpret_cast<float*>(group_.partials_.data()) + segment * partial_stride();
  }
  size_t partial_stride() const override { return PartialStride(group_.options_); }
  size_t max_rows() const override { return group_.options_.max_rows; }

  absl::Status AllReduce(const Sum& sum) override {
    MILLRACE_CHECK(sum.rows <= max_rows() && sum.columns <= group_.options_.columns &&
                   sum.segments <= partials_.size());
    const int64_t begin = SteadyNanos();
    absl::Status status = Meet();
    if (status.ok()) {
      Add(sum);
      status = Meet();
    }
    Count(begin);
    return status;
  }

  void Abort() override { group_.barrier_.Close(); }
  int64_t spent_ns() const override { return spent_ns_.load(std::memory_order_relaxed); }

 private:
  absl::Status Meet() {
    if (group_.barrier_.Wait()) return absl::OkStatus();
    return absl::AbortedError("another shard of this stage failed");
  }

  void Add(const Sum& sum) const {
    const kernels::WorkShare::Range columns =
        kernels::WorkShare{rank_, size_}.Of(sum.columns, kCacheLineFloats);
    kernels::AddPartialsArgs add;
    add.partials = absl::MakeConstSpan(partials_.data(), sum.segments);
    add.out = sum.residual;
    add.rows = sum.rows;
    add.columns = sum.columns;
    add.begin = columns.begin;
    add.end = columns.end;
    backend_.AddPartials(add);
  }

  void Count(int64_t begin) {
    spent_ns_.store(spent_ns() + SteadyNanos() - begin, std::memory_order_relaxed);
  }

  SharedMemoryGroup& group_;
  const uint32_t rank_;
  const uint32_t size_;
  const kernels::Backend& backend_;
  std::vector<const float*> partials_;
  std::atomic<int64_t> spent_ns_{0};  // written by the shard only
};

SharedMemoryGroup::SharedMemoryGroup(uint32_t shards, const CollectiveOptions& options)
    : options_(options), barrier_(shards) {}

absl::StatusOr<std::unique_ptr<SharedMemoryGroup>> SharedMemoryGroup::Create(
    absl::Span<const kernels::Backend* const> backends, const CollectiveOptions& options) {
  MILLRACE_CHECK(!backends.empty() && options.segments != 0);
  // The kernels index in size_t; so much cannot be had anyway.
  if (options.max_rows != 0 && options.columns > std::numeric_limits<uint32_t>::max() / options.max_rows) {
    return absl::ResourceExhaustedError(absl::StrCat("partial sums of ", options.max_rows, " x ",
                                                     options.columns, " floats do not fit the memory"));
  }
  const auto size = static_cast<uint32_t>(backends.size());
  std::unique_ptr<SharedMemoryGroup> group(new SharedMemoryGroup(size, options));
  ASSIGN_OR_RETURN(group->partials_,
                   HostMemory::Allocate("partial sums of the shards",
                                        uint64_t{options.segments} * PartialStride(options) * sizeof(float)));
  for (uint32_t rank = 0; rank < size; ++rank) {
    group->ends_.push_back(std::make_unique<End>(*group, rank, size, *backends[rank]));
  }
  return group;
}

}  // namespace millrace
