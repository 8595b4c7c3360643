// The functions of NCCL that Millrace calls: each calls that of libnccl.so.2, once LoadNccl has loaded it.
#include <dlfcn.h>
#include <nccl.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "worker/device/cuda/loaded_libraries.h"

namespace {

constexpr char kFile[] = "libnccl.so.2";
// ncclCommInitRankConfig and ncclCommFinalize came with 2.14.
constexpr int kLeastVersion = 21400;

struct Library {
  Library() {
    handle = dlopen(kFile, RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) error = dlerror();
  }
  void* handle = nullptr;
  std::string error;
};

const Library& Nccl() {
  static const Library* const library = new Library();
  return *library;
}

// `declared` gives the function's type only.
template <class Function>
Function* Find(Function* /*declared*/, const char* name) {
  return Nccl().handle == nullptr ? nullptr : reinterpret_cast<Function*>(dlsym(Nccl().handle, name));
}

}  // namespace

// LoadNccl has said what is missing before any of these is called.
#define MILLRACE_FORWARD(name, parameters, arguments)                  \
  ncclResult_t name parameters {                                       \
    static auto* const function = Find(&name, #name);                  \
    return function == nullptr ? ncclSystemError : function arguments; \
  }

extern "C" {

MILLRACE_FORWARD(ncclGetVersion, (int* version), (version))
MILLRACE_FORWARD(ncclGetUniqueId, (ncclUniqueId * id), (id))
MILLRACE_FORWARD(ncclCommInitRankConfig,
                 (ncclComm_t * comm, int ranks, ncclUniqueId id, int rank, ncclConfig_t* config),
                 (comm, ranks, id, rank, config))
MILLRACE_FORWARD(ncclCommFinalize, (ncclComm_t comm), (comm))
MILLRACE_FORWARD(ncclCommDestroy, (ncclComm_t comm), (comm))
MILLRACE_FORWARD(ncclCommAbort, (ncclComm_t comm), (comm))
MILLRACE_FORWARD(ncclCommGetAsyncError, (ncclComm_t comm, ncclResult_t* error), (comm, error))
MILLRACE_FORWARD(ncclGroupStart, (), ())
MILLRACE_FORWARD(ncclGroupEnd, (), ())
MILLRACE_FORWARD(ncclSend,
                 (const void* from, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                  cudaStream_t stream),
                 (from, count, type, peer, comm, stream))
MILLRACE_FORWARD(ncclRecv,
                 (void* to, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                  cudaStream_t stream),
                 (to, count, type, peer, comm, stream))
MILLRACE_FORWARD(ncclAllGather,
                 (const void* from, void* to, size_t count, ncclDataType_t type, ncclComm_t comm,
                  cudaStream_t stream),
                 (from, to, count, type, comm, stream))
MILLRACE_FORWARD(ncclAllReduce,
                 (const void* from, void* to, size_t count, ncclDataType_t type, ncclRedOp_t op,
                  ncclComm_t comm, cudaStream_t stream),
                 (from, to, count, type, op, comm, stream))

const char* ncclGetErrorString(ncclResult_t result) {
  static auto* const function = Find(&ncclGetErrorString, "ncclGetErrorString");
  return function == nullptr ? "NCCL is not loaded" : function(result);
}

const char* ncclGetLastError(ncclComm_t comm) {
  static auto* const function = Find(&ncclGetLastError, "ncclGetLastError");
  return function == nullptr ? "" : function(comm);
}

}  // extern "C"

namespace millrace {

absl::Status LoadNccl() {
  if (Nccl().handle == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("several devices need NCCL, which cannot be loaded: ", Nccl().error));
  }
  int version = 0;
  if (ncclGetVersion(&version) != ncclSuccess || version < kLeastVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat(kFile, " is NCCL version code ", version, "; ", kLeastVersion, " or later is needed"));
  }
  return absl::OkStatus();
}

}  // namespace millrace
