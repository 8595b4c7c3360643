#include <nccl.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "common/check.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "kernels/work_share.h"
#include "worker/device/cpu/shard_barrier.h"
#include "worker/device/cuda/cuda_collectives.h"
#include "worker/device/cuda/nccl_communicators.h"
#include "worker/device/cuda/partial_sums.h"

namespace millrace {
namespace {

using kernels::WorkShare;
using kernels::cuda::CudaQueue;

// What NCCL moves fastest is aligned to 16 bytes.
constexpr size_t kSliceUnit = 4;
// Up to so many floats (32 KB) each shard gets all partial sums and adds them all: one exchange, where an
// exchange of slices and a gather are two that both take their fixed time. Not measured on a GPU yet.
constexpr size_t kWholeFloats = 8192;

// The floats of a sum: `shards` slices that one shard each adds, then a rest that every shard adds.
struct Cut {
  size_t slice = 0;
  size_t rest_begin = 0;
  size_t rest = 0;

  static Cut Of(size_t floats, size_t shards) {
    Cut cut;
    cut.slice = floats <= kWholeFloats ? 0 : floats / shards / kSliceUnit * kSliceUnit;
    cut.rest_begin = cut.slice * shards;
    cut.rest = floats - cut.rest_begin;
    return cut;
  }
};

class NcclGroup final : public CudaCollectiveGroup {
 public:
  NcclGroup(absl::Span<const CudaQueue* const> queues, const CudaCollectiveOptions& options)
      : options_(options),
        queues_(queues.begin(), queues.end()),
        barrier_(static_cast<uint32_t>(queues.size())) {}
  ~NcclGroup() override;

  absl::Status Init();
  Collective& shard(size_t rank) override { return *ends_[rank]; }
  uint64_t bytes() const override;
  bool capturable() const override { return true; }

 private:
  class End;
  uint32_t size() const { return static_cast<uint32_t>(queues_.size()); }

  const CudaCollectiveOptions options_;
  const std::vector<const CudaQueue*> queues_;
  ShardBarrier barrier_;
  std::vector<PartialSums> sums_;
  std::shared_ptr<NcclCommunicators> communicators_;
  std::vector<std::unique_ptr<Collective>> ends_;
};

class NcclGroup::End final : public Collective {
 public:
  End(NcclGroup& group, uint32_t rank) : group_(group), rank_(rank), queue_(*group.queues_[rank]) {
    for (uint32_t i = 0; i < group.options_.sizes.segments; ++i) {
      segments_.push_back(group.sums_[rank].Segment(i));
    }
  }

  uint32_t rank() const override { return rank_; }
  uint32_t size() const override { return group_.size(); }

  absl::Status Barrier() override {
    const int64_t begin = SteadyNanos();
    const bool met = group_.barrier_.Wait();
    Count(begin);
    return met ? absl::OkStatus() : absl::AbortedError("another shard of this stage failed");
  }

  float* Partial(uint32_t segment) override {
    MILLRACE_CHECK(segment < segments_.size());
    return group_.sums_[rank_].Segment(segment);
  }
  size_t partial_stride() const override { return group_.sums_[rank_].stride(); }
  size_t max_rows() const override { return group_.options_.sizes.max_rows; }

  absl::Status AllReduce(const Sum& sum) override {
    MILLRACE_CHECK(sum.rows <= max_rows() && sum.columns <= group_.options_.sizes.columns &&
                   sum.segments <= segments_.size() && sum.segments >= size());
    const int64_t begin = SteadyNanos();
    group_.communicators_->Note(rank_, sum);
    const absl::Status status =
        group_.options_.kind == CudaCollectiveKind::kOrdered ? InOrder(sum) : InAny(sum);
    Count(begin);
    CudaWatchdog* const watchdog = group_.options_.watchdog;
    if (watchdog != nullptr && !absl::IsAborted(status)) watchdog->Report(rank_, status);
    return status;
  }

  void Abort() override {
    group_.barrier_.Close();
    // Kernels of other shards that wait for this one's end with their communicators.
    AbortWithin(group_.communicators_, size(), group_.options_.abort_limit);
  }
  int64_t spent_ns() const override { return spent_ns_.load(std::memory_order_relaxed); }

 private:
  WorkShare::Range Own(uint32_t rank, const Sum& sum) const {
    return WorkShare{rank, size()}.Of(sum.segments);
  }

  absl::Status InOrder(const Sum& sum) {
    const size_t floats = sum.rows * sum.columns;
    const Cut cut = Cut::Of(floats, size());
    RETURN_IF_ERROR(group_.communicators_->Call(rank_, "exchange of partial sums",
                                                [&](ncclComm_t comm) { return Exchange(comm, sum, cut); }));
    AddFloats add;
    add.partials = absl::MakeConstSpan(segments_).first(sum.segments);
    add.out = sum.residual;
    add.count = floats;
    add.begin = rank_ * cut.slice;
    add.end = add.begin + cut.slice;
    Enqueue(queue_, add);
    add.begin = cut.rest_begin;
    add.end = floats;
    Enqueue(queue_, add);
    if (cut.slice == 0) return absl::OkStatus();
    return group_.communicators_->Call(rank_, "gathering of sums", [&](ncclComm_t comm) {
      return ncclAllGather(sum.residual + rank_ * cut.slice, sum.residual, cut.slice, ncclFloat, comm,
                           queue_.stream());
    });
  }

  // Each shard's slice, and the rest, of each segment: from the segment's shard to all others, to the same
  // place. Messages between two shards are matched in the order of the calls ("Point To Point Communication
  // Functions").
  ncclResult_t Exchange(ncclComm_t comm, const Sum& sum, const Cut& cut) {
    ncclResult_t first = ncclGroupStart();
    const auto keep = [&](ncclResult_t result) {
      if (first == ncclSuccess || first == ncclInProgress) first = result == ncclSuccess ? first : result;
    };
    const WorkShare::Range own = Own(rank_, sum);
    for (uint32_t peer = 0; peer < size(); ++peer) {
      if (peer == rank_) continue;
      for (size_t segment = own.begin; segment < own.end; ++segment) {
        const float* from = segments_[segment];
        keep(Send(from + peer * cut.slice, cut.slice, peer, comm));
        keep(Send(from + cut.rest_begin, cut.rest, peer, comm));
      }
      const WorkShare::Range theirs = Own(peer, sum);
      for (size_t segment = theirs.begin; segment < theirs.end; ++segment) {
        float* to = Partial(static_cast<uint32_t>(segment));
        keep(Receive(to + rank_ * cut.slice, cut.slice, peer, comm));
        keep(Receive(to + cut.rest_begin, cut.rest, peer, comm));
      }
    }
    keep(ncclGroupEnd());
    return first;
  }

  ncclResult_t Send(const float* from, size_t floats, uint32_t peer, ncclComm_t comm) const {
    if (floats == 0) return ncclSuccess;
    return ncclSend(from, floats, ncclFloat, static_cast<int>(peer), comm, queue_.stream());
  }
  ncclResult_t Receive(float* to, size_t floats, uint32_t peer, ncclComm_t comm) const {
    if (floats == 0) return ncclSuccess;
    return ncclRecv(to, floats, ncclFloat, static_cast<int>(peer), comm, queue_.stream());
  }

  absl::Status InAny(const Sum& sum) {
    const size_t floats = sum.rows * sum.columns;
    const WorkShare::Range own = Own(rank_, sum);
    float* total = Partial(static_cast<uint32_t>(own.begin));
    AddFloats add;
    add.partials = absl::MakeConstSpan(segments_).subspan(own.begin + 1, own.end - own.begin - 1);
    add.out = total;
    add.count = floats;
    add.end = floats;
    if (!add.partials.empty()) Enqueue(queue_, add);
    RETURN_IF_ERROR(group_.communicators_->Call(rank_, "all-reduce", [&](ncclComm_t comm) {
      return ncclAllReduce(total, total, floats, ncclFloat, ncclSum, comm, queue_.stream());
    }));
    add.partials = absl::MakeConstSpan(segments_).subspan(own.begin, 1);
    add.out = sum.residual;
    Enqueue(queue_, add);
    return absl::OkStatus();
  }

  void Count(int64_t begin) {
    spent_ns_.store(spent_ns() + SteadyNanos() - begin, std::memory_order_relaxed);
  }

  NcclGroup& group_;
  const uint32_t rank_;
  const CudaQueue& queue_;
  std::vector<const float*> segments_;
  std::atomic<int64_t> spent_ns_{0};  // written by the shard only
};

absl::Status NcclGroup::Init() {
  std::vector<int> devices;
  for (const CudaQueue* queue : queues_) {
    devices.push_back(queue->traits().device);
    ASSIGN_OR_RETURN(PartialSums sums, PartialSums::Allocate(devices.back(), options_.sizes));
    sums_.push_back(std::move(sums));
  }
  const NcclCommunicators::Limits limits{options_.init_limit, options_.enqueue_limit, options_.abort_limit};
  ASSIGN_OR_RETURN(communicators_, NcclCommunicators::Create(std::move(devices), limits));
  for (uint32_t rank = 0; rank < size(); ++rank) ends_.push_back(std::make_unique<End>(*this, rank));
  if (options_.watchdog != nullptr) options_.watchdog->Watch(communicators_);
  return absl::OkStatus();
}

NcclGroup::~NcclGroup() {
  if (communicators_ == nullptr) return;
  if (options_.watchdog != nullptr) options_.watchdog->Unwatch(communicators_.get());
  if (communicators_->Finalize(options_.finalize_limit)) return;
  if (AbortWithin(communicators_, size(), options_.abort_limit)) return;
  // Giving memory back would wait for the kernels that hang.
  const absl::Status status = absl::UnavailableError("NCCL: communicators can be neither ended nor aborted");
  LogError(status.message());
  if (options_.watchdog != nullptr) options_.watchdog->Report(0, status);
}

uint64_t NcclGroup::bytes() const {
  uint64_t bytes = 0;
  for (const PartialSums& sums : sums_) bytes += sums.bytes();
  return bytes;
}

}  // namespace

absl::StatusOr<std::unique_ptr<CudaCollectiveGroup>> MakeNcclCollectives(
    absl::Span<const CudaQueue* const> queues, const CudaCollectiveOptions& options) {
  MILLRACE_CHECK(queues.size() >= 2 && options.sizes.segments >= queues.size());
  auto group = std::make_unique<NcclGroup>(queues, options);
  RETURN_IF_ERROR(group->Init());
  return absl::StatusOr<std::unique_ptr<CudaCollectiveGroup>>(std::move(group));
}

}  // namespace millrace
