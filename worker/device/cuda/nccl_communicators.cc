#include "worker/device/cuda/nccl_communicators.h"

#include <chrono>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/status_macros.h"

namespace millrace {
namespace {

// For a call that is under way in another thread; then it is taken to hang.
constexpr std::chrono::milliseconds kAbortPatience{200};
constexpr std::chrono::milliseconds kLookPatience{1};
constexpr std::chrono::microseconds kInitPoll{500};

bool Failed(ncclResult_t result) {
  return result != ncclSuccess && result != ncclInProgress;
}

absl::Time Now() {
  return Clock::Steady().Now();
}

}  // namespace

NcclCommunicators::NcclCommunicators(std::vector<int> devices, const Limits& limits) : limits_(limits) {
  for (int device : devices) {
    ranks_.push_back(std::make_unique<Rank>());
    ranks_.back()->device = device;
  }
}

absl::StatusOr<std::shared_ptr<NcclCommunicators>> NcclCommunicators::Create(std::vector<int> devices,
                                                                             const Limits& limits) {
  std::shared_ptr<NcclCommunicators> all(new NcclCommunicators(std::move(devices), limits));
  absl::Status status = all->Init();
  if (status.ok()) status = all->WaitForAll(Now() + limits.init);
  if (status.ok()) return all;
  if (!AbortWithin(all, all->size(), limits.abort)) {
    status = absl::UnavailableError(absl::StrCat(status.message(), "; aborting hangs as well"));
  }
  return status;
}

// One thread makes all communicators in one group ("Managing Multiple GPUs from one thread").
absl::Status NcclCommunicators::Init() {
  ncclUniqueId id;
  if (const ncclResult_t result = ncclGetUniqueId(&id); result != ncclSuccess) {
    return Error(0, "making a group's identity", result);
  }
  absl::Status status;
  if (const ncclResult_t result = ncclGroupStart(); Failed(result)) return Error(0, "group start", result);
  for (uint32_t shard = 0; shard < size() && status.ok(); ++shard) {
    const DeviceScope scope(ranks_[shard]->device);
    status = scope.status();
    if (!status.ok()) break;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    ncclComm_t comm = nullptr;
    const ncclResult_t result =
        ncclCommInitRankConfig(&comm, static_cast<int>(size()), id, static_cast<int>(shard), &config);
    ranks_[shard]->comm = comm;
    if (Failed(result)) status = Error(shard, "joining", result);
  }
  const ncclResult_t result = ncclGroupEnd();
  if (status.ok() && Failed(result)) status = Error(0, "joining", result);
  return status;
}

// An error of any shard counts, also while others only wait for that one.
absl::Status NcclCommunicators::WaitForAll(absl::Time deadline) {
  for (;;) {
    uint32_t waiting = size();
    for (uint32_t shard = 0; shard < size(); ++shard) {
      ncclResult_t state = ncclSuccess;
      const ncclResult_t result = ncclCommGetAsyncError(ranks_[shard]->comm, &state);
      if (result != ncclSuccess) return Error(shard, "joining", result);
      if (Failed(state)) return Error(shard, "joining", state);
      if (state != ncclSuccess && waiting == size()) waiting = shard;
    }
    if (waiting == size()) return absl::OkStatus();
    if (Now() >= deadline) return Late(waiting, "joining", limits_.init);
    std::this_thread::sleep_for(kInitPoll);
  }
}

absl::Status NcclCommunicators::Call(uint32_t shard, absl::string_view what,
                                     absl::FunctionRef<ncclResult_t(ncclComm_t)> enqueue) {
  Rank& rank = *ranks_[shard];
  const std::unique_lock<std::timed_mutex> lock(rank.mutex);
  if (rank.aborted || rank.comm == nullptr) return absl::AbortedError("another shard of this stage failed");
  const ncclResult_t result = enqueue(rank.comm);
  if (Failed(result)) return Error(shard, what, result);
  if (result == ncclSuccess) return absl::OkStatus();
  return Settle(shard, what, Now() + limits_.enqueue);
}

// REQUIRES: the caller holds the rank's mutex.
absl::Status NcclCommunicators::Settle(uint32_t shard, absl::string_view what, absl::Time deadline) {
  Rank& rank = *ranks_[shard];
  for (;;) {
    if (rank.aborted) return absl::AbortedError("another shard of this stage failed");
    ncclResult_t state = ncclSuccess;
    const ncclResult_t result = ncclCommGetAsyncError(rank.comm, &state);
    if (result != ncclSuccess) return Error(shard, what, result);
    if (Failed(state)) return Error(shard, what, state);
    if (state == ncclSuccess) return absl::OkStatus();
    if (Now() >= deadline) return Late(shard, what, limits_.enqueue);
    std::this_thread::yield();
  }
}

absl::Status NcclCommunicators::Error(uint32_t shard, absl::string_view what, ncclResult_t result) const {
  const Rank& rank = *ranks_[shard];
  const char* last = ncclGetLastError(rank.comm);
  return absl::UnavailableError(absl::StrCat("NCCL: ", what, " of shard ", shard, " of ", size(), " (device ",
                                             rank.device, "): ", ncclGetErrorString(result),
                                             last == nullptr || *last == '\0' ? "" : ": ",
                                             last == nullptr ? "" : last));
}

absl::Status NcclCommunicators::Late(uint32_t shard, absl::string_view what, absl::Duration limit) const {
  return absl::UnavailableError(absl::StrCat("NCCL: ", what, " of shard ", shard, " of ", size(), " (device ",
                                             ranks_[shard]->device, "): not done after ",
                                             absl::FormatDuration(limit)));
}

absl::Status NcclCommunicators::AsyncError(uint32_t shard) {
  Rank& rank = *ranks_[shard];
  const std::unique_lock<std::timed_mutex> lock(rank.mutex, kLookPatience);
  if (!lock.owns_lock() || rank.aborted || rank.comm == nullptr) return absl::OkStatus();
  ncclResult_t state = ncclSuccess;
  const ncclResult_t result = ncclCommGetAsyncError(rank.comm, &state);
  if (result != ncclSuccess) return Error(shard, "looking for errors", result);
  return Failed(state) ? Error(shard, "a collective", state) : absl::OkStatus();
}

// A communicator is aborted at most once, and not while it is given back.
void NcclCommunicators::Abort(uint32_t shard) {
  Rank& rank = *ranks_[shard];
  rank.aborted = true;
  const std::unique_lock<std::timed_mutex> lock(rank.mutex, kAbortPatience);
  if (ncclComm_t comm = rank.comm.exchange(nullptr); comm != nullptr) {
    // Whatever it says, nothing more can be done.
    (void)ncclCommAbort(comm);
  }
}

bool NcclCommunicators::Finalize(absl::Duration limit) {
  const absl::Time deadline = Now() + limit;
  for (const std::unique_ptr<Rank>& rank : ranks_) {
    const std::unique_lock<std::timed_mutex> lock(rank->mutex);
    if (rank->comm != nullptr && Failed(ncclCommFinalize(rank->comm))) return false;
  }
  for (const std::unique_ptr<Rank>& rank : ranks_) {
    const std::unique_lock<std::timed_mutex> lock(rank->mutex);
    ncclResult_t state = ncclSuccess;
    do {
      if (rank->aborted || rank->comm == nullptr) return false;
      if (ncclCommGetAsyncError(rank->comm, &state) != ncclSuccess || Failed(state)) return false;
      if (state == ncclInProgress) {
        if (Now() >= deadline) return false;
        std::this_thread::sleep_for(kInitPoll);
      }
    } while (state == ncclInProgress);
  }
  for (const std::unique_ptr<Rank>& rank : ranks_) {
    const std::unique_lock<std::timed_mutex> lock(rank->mutex);
    if (ncclComm_t comm = rank->comm.exchange(nullptr); comm != nullptr) (void)ncclCommDestroy(comm);
  }
  return true;
}

}  // namespace millrace
