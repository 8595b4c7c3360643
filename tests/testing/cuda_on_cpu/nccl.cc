#include "cuda_on_cpu/nccl.h"

#include <cuda_runtime_api.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <sstream>
#include <thread>

#include "nccl_clique.h"
#include "random.h"
#include "stream_work.h"

namespace cuda_on_cpu {
namespace {

using internal::NcclClique;
using internal::NcclMisuse;
using internal::NcclOp;

constexpr int kMaxRanks = 64;
constexpr uint64_t kNever = ~uint64_t{0};
const std::pair<const char*, NcclFault> kFaultNames[] = {
    {"fail-init", NcclFault::kFailInit},       {"hang-init", NcclFault::kHangInit},
    {"fail-async", NcclFault::kFailAsync},     {"hang-work", NcclFault::kHangWork},
    {"hang-enqueue", NcclFault::kHangEnqueue}, {"hang-finalize", NcclFault::kHangFinalize},
    {"hang-abort", NcclFault::kHangAbort}};

// By fault and rank: from which piece of work on.
struct Faults {
  Faults() {
    Clear();
    const char* text = std::getenv("MILLRACE_NCCL_ON_CPU");
    if (text != nullptr && !Parse(text)) NcclMisuse(std::string("MILLRACE_NCCL_ON_CPU: ") + text);
  }
  void Clear() {
    for (auto& ranks : from) {
      for (std::atomic<uint64_t>& rank : ranks) rank = kNever;
    }
  }
  bool Parse(const std::string& text) {
    std::istringstream list(text);
    for (std::string item; std::getline(list, item, ',');) {
      char name[32];
      int rank = -1;
      unsigned long long after = 0;
      if (std::sscanf(item.c_str(), "%31[a-z-]=%d@%llu", name, &rank, &after) < 2) return false;
      if (rank < 0 || rank >= kMaxRanks) return false;
      bool known = false;
      for (const auto& [fault_name, fault] : kFaultNames) {
        if (std::string(name) != fault_name) continue;
        from[static_cast<size_t>(fault)][rank] = after;
        known = true;
      }
      if (!known) return false;
    }
    return true;
  }

  std::array<std::array<std::atomic<uint64_t>, kMaxRanks>, std::size(kFaultNames)> from;
  std::array<std::atomic<uint64_t>, kMaxRanks> done{};  // pieces of work that a rank has begun
};

Faults& TheFaults() {
  static Faults& faults = *new Faults;
  return faults;
}

bool Shows(NcclFault fault, int rank) {
  Faults& faults = TheFaults();
  return faults.done[rank] >= faults.from[static_cast<size_t>(fault)][rank];
}

enum class Phase { kJoining, kReady, kEnqueueing, kFinalizing, kFinalized };

}  // namespace
}  // namespace cuda_on_cpu

using cuda_on_cpu::internal::NcclClique;
using cuda_on_cpu::internal::NcclOp;

struct ncclComm {
  int rank = 0;
  std::shared_ptr<NcclClique> clique;
  std::mutex mutex;
  cuda_on_cpu::Phase phase = cuda_on_cpu::Phase::kJoining;
  ncclResult_t error = ncclSuccess;
  std::string error_text;
  uint32_t polls = 0;  // that the phase still takes
  cuda_on_cpu::internal::Random random{0};
  std::vector<NcclOp> ops;                                 // to enqueue
  std::shared_ptr<int> in_use = std::make_shared<int>(0);  // shared with what is on streams and in graphs
};

namespace cuda_on_cpu {
namespace {

constexpr uint32_t kMostPolls = 4;

// What exists of all communicators.
struct Registry {
  std::mutex mutex;
  std::set<ncclComm*> live;
  std::map<std::string, std::weak_ptr<NcclClique>> cliques;
  uint64_t ids = 0;
};

Registry& TheRegistry() {
  static Registry& registry = *new Registry;
  return registry;
}

ncclComm& Live(ncclComm_t comm) {
  Registry& registry = TheRegistry();
  const std::lock_guard lock(registry.mutex);
  if (registry.live.count(comm) == 0) NcclMisuse("a call with a communicator that is not, or no longer");
  return *comm;
}

void Forget(ncclComm& comm) {
  Registry& registry = TheRegistry();
  const std::lock_guard lock(registry.mutex);
  if (registry.live.erase(&comm) == 0) NcclMisuse("a communicator is given back twice");
}

ncclResult_t Fail(ncclComm& comm, ncclResult_t error, const std::string& text) {
  comm.error = error;
  comm.error_text = text;
  return error;
}

// REQUIRES: the communicator's mutex.
ncclResult_t PutOnStream(ncclComm& comm) {
  const cudaStream_t stream = comm.ops.front().stream;
  for (const NcclOp& op : comm.ops) {
    if (op.stream != stream) NcclMisuse("one group on several streams");
  }
  const auto work = [ops = std::move(comm.ops), clique = comm.clique, rank = comm.rank,
                     in_use = comm.in_use] {
    clique->WaitWhile(rank, [](int r) { return Shows(NcclFault::kHangWork, r); });
    ++TheFaults().done[rank];
    clique->Run(rank, ops);
  };
  comm.ops.clear();
  if (const cudaError_t error = EnqueueWork(stream, work); error != cudaSuccess) {
    return Fail(comm, ncclUnhandledCudaError, std::string("enqueueing: ") + cudaGetErrorString(error));
  }
  comm.phase = Phase::kReady;
  return ncclSuccess;
}

// Goes on with what the communicator is at, as NCCL's own threads would.
ncclResult_t Poll(ncclComm& comm) {
  if (comm.error != ncclSuccess) return comm.error;
  if (Shows(NcclFault::kFailAsync, comm.rank)) {
    return Fail(comm, ncclRemoteError, "remote process exited or there was a network error");
  }
  if (comm.polls > 0) {
    --comm.polls;
    return ncclInProgress;
  }
  switch (comm.phase) {
    case Phase::kJoining:
      if (Shows(NcclFault::kFailInit, comm.rank)) return Fail(comm, ncclSystemError, "no shared memory");
      if (Shows(NcclFault::kHangInit, comm.rank) || !comm.clique->complete()) return ncclInProgress;
      comm.phase = Phase::kReady;
      return ncclSuccess;
    case Phase::kEnqueueing:
      return Shows(NcclFault::kHangEnqueue, comm.rank) ? ncclInProgress : PutOnStream(comm);
    case Phase::kFinalizing:
      // NCCL waits for graphs, too ("Using NCCL with CUDA Graphs").
      if (Shows(NcclFault::kHangFinalize, comm.rank) || comm.in_use.use_count() > 1) return ncclInProgress;
      comm.phase = Phase::kFinalized;
      return ncclSuccess;
    case Phase::kReady:
    case Phase::kFinalized:
      return ncclSuccess;
  }
  return ncclInternalError;
}

ncclResult_t Submit(ncclComm& comm, std::vector<NcclOp> ops) {
  const std::lock_guard lock(comm.mutex);
  if (comm.error != ncclSuccess) return comm.error;
  if (comm.phase != Phase::kReady) {
    return Fail(comm, ncclInvalidUsage, "a call while the communicator is not ready for one");
  }
  comm.ops = std::move(ops);
  comm.phase = Phase::kEnqueueing;
  comm.polls = comm.random.Below(kMostPolls);
  if (comm.polls == 0 && !Shows(NcclFault::kHangEnqueue, comm.rank)) return PutOnStream(comm);
  return ncclInProgress;
}

struct Group {
  int depth = 0;
  bool joins = false;
  std::vector<std::pair<ncclComm*, std::vector<NcclOp>>> ops;
};
thread_local Group group;

ncclResult_t Add(ncclComm_t comm, const NcclOp& op) {
  ncclComm& known = Live(comm);
  if (op.peer < 0 || op.peer >= known.clique->size()) return ncclInvalidArgument;
  if (group.depth == 0) return Submit(known, {op});
  if (group.ops.empty() || group.ops.back().first != comm) group.ops.push_back({comm, {}});
  group.ops.back().second.push_back(op);
  return ncclSuccess;
}

NcclOp Op(NcclOp::Kind kind, size_t count, ncclDataType_t type, cudaStream_t stream) {
  if (type != ncclFloat) NcclMisuse("only floats are known here");
  NcclOp op{kind};
  op.count = count;
  op.stream = stream;
  return op;
}

}  // namespace

void SetNcclFault(NcclFault fault, int rank, uint64_t after) {
  TheFaults().from[static_cast<size_t>(fault)][rank] = after == 0 ? 0 : TheFaults().done[rank] + after;
}

void ClearNcclFaults() {
  TheFaults().Clear();
}

bool SetNcclFaults(const std::string& text) {
  return TheFaults().Parse(text);
}

int LiveNcclCommunicators() {
  const std::lock_guard lock(TheRegistry().mutex);
  return static_cast<int>(TheRegistry().live.size());
}

}  // namespace cuda_on_cpu

using namespace cuda_on_cpu;  // NOLINT: what follows are NCCL's own names

extern "C" {

ncclResult_t ncclGetVersion(int* version) {
  *version = NCCL_VERSION_CODE;
  return ncclSuccess;
}

const char* ncclGetErrorString(ncclResult_t result) {
  switch (result) {
    case ncclSuccess:
      return "no error";
    case ncclUnhandledCudaError:
      return "unhandled cuda error";
    case ncclSystemError:
      return "unhandled system error";
    case ncclInternalError:
      return "internal error";
    case ncclInvalidArgument:
      return "invalid argument";
    case ncclInvalidUsage:
      return "invalid usage";
    case ncclRemoteError:
      return "remote process exited or there was a network error";
    case ncclInProgress:
      return "operation in progress";
    default:
      return "unknown result code";
  }
}

const char* ncclGetLastError(ncclComm_t comm) {
  return comm == nullptr ? "" : Live(comm).error_text.c_str();
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  Registry& registry = TheRegistry();
  const std::lock_guard lock(registry.mutex);
  std::snprintf(id->internal, sizeof(id->internal), "clique %llu",
                static_cast<unsigned long long>(++registry.ids));
  return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t* config) {
  *comm = nullptr;
  if (config == nullptr || config->blocking != 0)
    NcclMisuse("only non-blocking communicators are known here");
  if (ranks < 1 || ranks > kMaxRanks || rank < 0 || rank >= ranks) return ncclInvalidArgument;
  int device = -1;
  if (cudaGetDevice(&device) != cudaSuccess) return ncclUnhandledCudaError;
  auto made = std::make_unique<ncclComm>();
  made->rank = rank;
  made->random = internal::Random(static_cast<uint64_t>(rank));
  made->polls = kMostPolls;
  Registry& registry = TheRegistry();
  const std::lock_guard lock(registry.mutex);
  std::weak_ptr<NcclClique>& known = registry.cliques[id.internal];
  made->clique = known.lock();
  if (made->clique == nullptr) known = made->clique = std::make_shared<NcclClique>(ranks);
  if (made->clique->size() != ranks) return ncclInvalidArgument;
  if (!made->clique->Join(rank, device)) {
    Fail(*made, ncclInvalidUsage, "Duplicate GPU detected : rank " + std::to_string(rank));
  }
  *comm = made.release();
  registry.live.insert(*comm);
  return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* state) {
  ncclComm& known = Live(comm);
  const std::lock_guard lock(known.mutex);
  *state = Poll(known);
  return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t comm) {
  ncclComm& known = Live(comm);
  const std::lock_guard lock(known.mutex);
  if (known.error != ncclSuccess) return known.error;
  if (known.phase != Phase::kReady) return Fail(known, ncclInvalidUsage, "finalized when it is not ready");
  known.phase = Phase::kFinalizing;
  known.polls = known.random.Below(kMostPolls);
  return ncclInProgress;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  ncclComm& known = Live(comm);
  if (known.phase != Phase::kFinalized) NcclMisuse("a communicator is destroyed that is not finalized");
  Forget(known);
  delete comm;
  return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t comm) {
  ncclComm& known = Live(comm);
  while (Shows(NcclFault::kHangAbort, known.rank)) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  Forget(known);
  known.clique->Abort(known.rank);
  { const std::lock_guard lock(known.mutex); }
  delete comm;
  return ncclSuccess;
}

ncclResult_t ncclGroupStart() {
  ++group.depth;
  return ncclSuccess;
}

ncclResult_t ncclGroupEnd() {
  if (group.depth == 0) return ncclInvalidUsage;
  if (--group.depth > 0) return ncclSuccess;
  auto all = std::move(group.ops);
  group.ops.clear();
  ncclResult_t worst = ncclSuccess;
  for (auto& [comm, ops] : all) {
    const ncclResult_t result = Submit(Live(comm), std::move(ops));
    if (result != ncclSuccess && (worst == ncclSuccess || worst == ncclInProgress)) worst = result;
  }
  return worst;
}

ncclResult_t ncclSend(const void* from, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  NcclOp op = Op(NcclOp::Kind::kSend, count, type, stream);
  op.from = from;
  op.peer = peer;
  return Add(comm, op);
}

ncclResult_t ncclRecv(void* to, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  NcclOp op = Op(NcclOp::Kind::kReceive, count, type, stream);
  op.to = to;
  op.peer = peer;
  return Add(comm, op);
}

ncclResult_t ncclAllGather(const void* from, void* to, size_t count, ncclDataType_t type, ncclComm_t comm,
                           cudaStream_t stream) {
  NcclOp op = Op(NcclOp::Kind::kAllGather, count, type, stream);
  op.from = from;
  op.to = to;
  return Add(comm, op);
}

ncclResult_t ncclAllReduce(const void* from, void* to, size_t count, ncclDataType_t type, ncclRedOp_t sum,
                           ncclComm_t comm, cudaStream_t stream) {
  if (sum != ncclSum) NcclMisuse("only sums are known here");
  NcclOp op = Op(NcclOp::Kind::kAllReduce, count, type, stream);
  op.from = from;
  op.to = to;
  return Add(comm, op);
}

}  // extern "C"
