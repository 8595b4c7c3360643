// The NCCL communicators of one process's shards, in non-blocking mode: no call waits for another shard, each
// is polled until NCCL has taken it (NCCL user guide, "Fault Tolerance" and "Group Calls").
#pragma once

#include <nccl.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "worker/device/cuda/partial_sums.h"
#include "worker/device/cuda/watchdog.h"

namespace millrace {

// Communicators end by Finalize or Abort; what is left at the end is left to the process's.
class NcclCommunicators final : public WatchedCollectives {
 public:
  struct Limits {
    absl::Duration init;
    absl::Duration enqueue;
    absl::Duration abort;
  };
  // Rank i on device devices[i]. Thread: any one; its device stays what it was. UNAVAILABLE, naming shard and
  // device: NCCL refused, failed or did not finish in time; what was begun is aborted.
  static absl::StatusOr<std::shared_ptr<NcclCommunicators>> Create(std::vector<int> devices,
                                                                   const Limits& limits);

  uint32_t size() const { return static_cast<uint32_t>(ranks_.size()); }

  // Calls `enqueue` with the shard's communicator and waits until NCCL has taken what it enqueued. ABORTED:
  // the communicator is. UNAVAILABLE: NCCL failed, or did not take it in time. Thread: the shard's.
  absl::Status Call(uint32_t shard, absl::string_view what,
                    absl::FunctionRef<ncclResult_t(ncclComm_t)> enqueue);
  void Note(uint32_t shard, const Collective::Sum& sum) { ranks_[shard]->enqueued.Note(sum); }

  // Waits for what is enqueued, then gives all communicators back. False: some are left to abort, because
  // that fails, takes longer than `limit`, or one was aborted. Thread: any one, when no other calls anything
  // but what WatchedCollectives says.
  bool Finalize(absl::Duration limit);

  absl::Status AsyncError(uint32_t shard) override;
  std::string LastEnqueued(uint32_t shard) override { return ranks_[shard]->enqueued.Text(); }
  void Abort(uint32_t shard) override;

 private:
  struct Rank {
    int device = 0;
    std::timed_mutex mutex;                  // held by who calls NCCL with the communicator
    std::atomic<ncclComm_t> comm = nullptr;  // null: given back
    std::atomic<bool> aborted = false;
    EnqueuedSums enqueued;
  };
  NcclCommunicators(std::vector<int> devices, const Limits& limits);

  absl::Status Init();
  absl::Status WaitForAll(absl::Time deadline);
  absl::Status Settle(uint32_t shard, absl::string_view what, absl::Time deadline);
  absl::Status Error(uint32_t shard, absl::string_view what, ncclResult_t result) const;
  absl::Status Late(uint32_t shard, absl::string_view what, absl::Duration limit) const;

  const Limits limits_;
  std::vector<std::unique_ptr<Rank>> ranks_;
};

}  // namespace millrace
