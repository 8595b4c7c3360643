#include <cuda_runtime.h>

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/clock.h"
#include "common/status_macros.h"
#include "worker/device/cpu/shard_barrier.h"
#include "worker/device/cuda/cuda_collectives.h"
#include "worker/device/cuda/partial_sums.h"

namespace millrace {
namespace {

using kernels::cuda::CudaQueue;

// Two sets of partial sums take turns: a shard that has met the others for one sum knows that all have
// enqueued the reading of the sum before it, and waits for that in its stream. So one meeting a sum does.
constexpr size_t kTurns = 2;

// Outlives the group where an abort is under way.
class Meeting final : public WatchedCollectives {
 public:
  explicit Meeting(uint32_t shards) : barrier_(shards), enqueued_(shards) {}

  bool Wait() { return barrier_.Wait(); }
  void Close() { barrier_.Close(); }
  void Note(uint32_t shard, const Collective::Sum& sum) { enqueued_[shard].Note(sum); }

  absl::Status AsyncError(uint32_t) override { return absl::OkStatus(); }
  std::string LastEnqueued(uint32_t shard) override { return enqueued_[shard].Text(); }
  void Abort(uint32_t) override { Close(); }

 private:
  ShardBarrier barrier_;
  std::vector<EnqueuedSums> enqueued_;
};

class LocalGroup final : public CudaCollectiveGroup {
 public:
  LocalGroup(absl::Span<const CudaQueue* const> queues, const CudaCollectiveOptions& options)
      : options_(options),
        queues_(queues.begin(), queues.end()),
        meeting_(std::make_shared<Meeting>(static_cast<uint32_t>(queues.size()))) {}
  ~LocalGroup() override;

  absl::Status Init();
  Collective& shard(size_t rank) override { return *ends_[rank]; }
  uint64_t bytes() const override { return sums_[0].bytes() + sums_[1].bytes(); }
  bool capturable() const override { return false; }

 private:
  class End;
  uint32_t size() const { return static_cast<uint32_t>(queues_.size()); }

  const CudaCollectiveOptions options_;
  const std::vector<const CudaQueue*> queues_;
  const std::shared_ptr<Meeting> meeting_;
  PartialSums sums_[kTurns];                  // of all shards
  std::vector<cudaEvent_t> written_[kTurns];  // by shard: its partial sums are
  std::vector<std::unique_ptr<Collective>> ends_;
};

class LocalGroup::End final : public Collective {
 public:
  End(LocalGroup& group, uint32_t rank) : group_(group), rank_(rank), queue_(*group.queues_[rank]) {
    for (size_t turn = 0; turn < kTurns; ++turn) {
      for (uint32_t i = 0; i < group.options_.sizes.segments; ++i) {
        segments_[turn].push_back(group.sums_[turn].Segment(i));
      }
    }
  }

  uint32_t rank() const override { return rank_; }
  uint32_t size() const override { return group_.size(); }

  absl::Status Barrier() override {
    const int64_t begin = SteadyNanos();
    const absl::Status status = Meet();
    Count(begin);
    return status;
  }

  float* Partial(uint32_t segment) override {
    MILLRACE_CHECK(segment < group_.options_.sizes.segments);
    return group_.sums_[turn_].Segment(segment);
  }
  size_t partial_stride() const override { return group_.sums_[0].stride(); }
  size_t max_rows() const override { return group_.options_.sizes.max_rows; }

  absl::Status AllReduce(const Sum& sum) override {
    MILLRACE_CHECK(sum.rows <= max_rows() && sum.columns <= group_.options_.sizes.columns &&
                   sum.segments <= group_.options_.sizes.segments && sum.segments >= size());
    const int64_t begin = SteadyNanos();
    group_.meeting_->Note(rank_, sum);
    const std::vector<cudaEvent_t>& written = group_.written_[turn_];
    queue_.Check(cudaEventRecord(written[rank_], queue_.stream()), "mark of written partial sums");
    const absl::Status status = Meet();
    if (status.ok()) {
      Add(sum, written);
      turn_ = (turn_ + 1) % kTurns;
    }
    Count(begin);
    return status;
  }

  void Abort() override { group_.meeting_->Close(); }
  int64_t spent_ns() const override { return spent_ns_.load(std::memory_order_relaxed); }

 private:
  absl::Status Meet() {
    if (group_.meeting_->Wait()) return absl::OkStatus();
    return absl::AbortedError("another shard of this stage failed");
  }

  // Each shard adds all of it to its own copy.
  void Add(const Sum& sum, const std::vector<cudaEvent_t>& written) {
    for (uint32_t peer = 0; peer < size(); ++peer) {
      if (peer == rank_) continue;
      queue_.Check(cudaStreamWaitEvent(queue_.stream(), written[peer], 0), "wait for partial sums");
    }
    AddFloats add;
    add.partials = absl::MakeConstSpan(segments_[turn_]).first(sum.segments);
    add.out = sum.residual;
    add.count = sum.rows * sum.columns;
    add.end = add.count;
    Enqueue(queue_, add);
  }

  void Count(int64_t begin) {
    spent_ns_.store(spent_ns() + SteadyNanos() - begin, std::memory_order_relaxed);
  }

  LocalGroup& group_;
  const uint32_t rank_;
  const CudaQueue& queue_;
  size_t turn_ = 0;
  std::vector<const float*> segments_[kTurns];
  std::atomic<int64_t> spent_ns_{0};  // written by the shard only
};

absl::Status LocalGroup::Init() {
  const int device = queues_.front()->traits().device;
  const DeviceScope scope(device);
  RETURN_IF_ERROR(scope.status());
  for (size_t turn = 0; turn < kTurns; ++turn) {
    ASSIGN_OR_RETURN(sums_[turn], PartialSums::Allocate(device, options_.sizes));
    for (uint32_t rank = 0; rank < size(); ++rank) {
      cudaEvent_t event = nullptr;
      const cudaError_t error = cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
      if (error != cudaSuccess) {
        return absl::UnavailableError(
            absl::StrCat("CUDA device ", device, ": event: ", cudaGetErrorString(error)));
      }
      written_[turn].push_back(event);
    }
  }
  for (uint32_t rank = 0; rank < size(); ++rank) ends_.push_back(std::make_unique<End>(*this, rank));
  if (options_.watchdog != nullptr) options_.watchdog->Watch(meeting_);
  return absl::OkStatus();
}

LocalGroup::~LocalGroup() {
  if (options_.watchdog != nullptr) options_.watchdog->Unwatch(meeting_.get());
  for (const std::vector<cudaEvent_t>& events : written_) {
    // Fails only where the device is lost.
    for (cudaEvent_t event : events) (void)cudaEventDestroy(event);
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<CudaCollectiveGroup>> MakeLocalCollectives(
    absl::Span<const CudaQueue* const> queues, const CudaCollectiveOptions& options) {
  MILLRACE_CHECK(queues.size() >= 2 && options.sizes.segments >= queues.size());
  for (const CudaQueue* queue : queues) {
    MILLRACE_CHECK(queue->traits().device == queues.front()->traits().device);
  }
  auto group = std::make_unique<LocalGroup>(queues, options);
  RETURN_IF_ERROR(group->Init());
  return absl::StatusOr<std::unique_ptr<CudaCollectiveGroup>>(std::move(group));
}

}  // namespace millrace
