#include "worker/device/cuda/cuda_device.h"

#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/log.h"
#include "common/options.h"
#include "common/status_macros.h"

namespace millrace {

// The executable form; the graph itself is not kept.
class CudaDevice::Graph final : public CapturedWork {
 public:
  Graph(int ordinal, cudaGraphExec_t exec) : ordinal_(ordinal), exec_(exec) {}
  ~Graph() override {
    cudaSetDevice(ordinal_);
    cudaGraphExecDestroy(exec_);
  }
  cudaGraphExec_t exec() const { return exec_; }

 private:
  const int ordinal_;
  const cudaGraphExec_t exec_;
};

absl::StatusOr<std::unique_ptr<CudaDevice>> CudaDevice::Create(const CudaDeviceOptions& options) {
  std::unique_ptr<CudaDevice> device(new CudaDevice(options));
  RETURN_IF_ERROR(device->Open());
  return device;
}

absl::Status CudaDevice::Open() {
  kernels::cuda::DeviceTraits traits;
  RETURN_IF_ERROR(kernels::cuda::ReadTraits(options_.ordinal, &traits));
  cudaDeviceProp properties{};
  RETURN_IF_ERROR(Error(cudaSetDevice(options_.ordinal), "cudaSetDevice"));
  RETURN_IF_ERROR(Error(cudaGetDeviceProperties(&properties, options_.ordinal), "cudaGetDeviceProperties"));
  model_ = properties.name;
  RETURN_IF_ERROR(Error(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a stream"));
  RETURN_IF_ERROR(Error(cudaEventCreateWithFlags(&done_, cudaEventDisableTiming), "making an event"));
  backend_ = kernels::cuda::MakeCudaBackend(stream_, traits);
  return absl::OkStatus();
}

// Errors do not matter any more, and there may be many: a lost device refuses everything.
CudaDevice::~CudaDevice() {
  cudaSetDevice(options_.ordinal);
  if (done_ != nullptr) cudaEventDestroy(done_);
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

std::string CudaDevice::name() const {
  return absl::StrCat(model_, ", device ", options_.ordinal);
}

absl::Status CudaDevice::Error(cudaError_t error, absl::string_view what) const {
  if (error == cudaSuccess) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("CUDA device ", options_.ordinal, ": ", what, ": ",
                                          cudaGetErrorName(error), ": ", cudaGetErrorString(error)));
}

absl::Status CudaDevice::NoMemory(cudaError_t error, absl::string_view what, uint64_t bytes) const {
  if (error != cudaErrorMemoryAllocation) return Error(error, what);
  (void)cudaGetLastError();
  size_t free = 0, total = 0;
  (void)cudaMemGetInfo(&free, &total);
  return absl::ResourceExhaustedError(
      absl::StrCat("CUDA device ", options_.ordinal, ": ", what, ": ", FormatBytes(bytes),
                   " of memory are needed, ", FormatBytes(free), " of ", FormatBytes(total), " are free"));
}

void CudaDevice::Enter() {
  queue().Check(cudaSetDevice(options_.ordinal), "cudaSetDevice");
}

absl::StatusOr<DeviceMemory> CudaDevice::Allocate(absl::string_view what, uint64_t bytes) {
  if (bytes == 0) return DeviceMemory();
  RETURN_IF_ERROR(Error(cudaSetDevice(options_.ordinal), "cudaSetDevice"));
  void* memory = nullptr;
  if (const cudaError_t error = cudaMalloc(&memory, bytes); error != cudaSuccess) {
    return NoMemory(error, what, bytes);
  }
  DeviceMemory owner(static_cast<uint8_t*>(memory), bytes, [ordinal = options_.ordinal](uint8_t* data) {
    cudaSetDevice(ordinal);
    cudaFree(data);
  });
  RETURN_IF_ERROR(Error(cudaMemsetAsync(memory, 0, bytes, stream_), what));
  RETURN_IF_ERROR(Error(cudaStreamSynchronize(stream_), what));
  return owner;
}

absl::StatusOr<DeviceMemory> CudaDevice::AllocateStaging(absl::string_view what, uint64_t bytes) {
  if (bytes == 0) return DeviceMemory();
  RETURN_IF_ERROR(Error(cudaSetDevice(options_.ordinal), "cudaSetDevice"));
  void* memory = nullptr;
  if (const cudaError_t error = cudaHostAlloc(&memory, bytes, cudaHostAllocPortable); error != cudaSuccess) {
    (void)cudaGetLastError();
    return absl::ResourceExhaustedError(
        absl::StrCat(what, ": ", FormatBytes(bytes), " of pinned host memory: ", cudaGetErrorString(error)));
  }
  std::memset(memory, 0, bytes);
  return DeviceMemory(static_cast<uint8_t*>(memory), bytes, [](uint8_t* data) { cudaFreeHost(data); });
}

uint64_t CudaDevice::FreeBytes() const {
  size_t free = 0, total = 0;
  cudaSetDevice(options_.ordinal);
  if (cudaMemGetInfo(&free, &total) != cudaSuccess) return 0;
  return free / options_.sharers;
}

void CudaDevice::Begin(const WorkName& work) {
  const std::vector<std::string>& report = backend_->report();
  for (; reported_ < report.size(); ++reported_) LogInfo(name(), ": ", report[reported_]);
  if (options_.watchdog == nullptr) return;
  options_.watchdog->Begin(options_.shard, {work.stage, work.microbatch, options_.work_limit});
}

void CudaDevice::CopyIn(void* to, const void* from_staging, uint64_t bytes) {
  queue().Check(cudaMemcpyAsync(to, from_staging, bytes, cudaMemcpyHostToDevice, stream_),
                "copy to the device");
}

void CudaDevice::CopyOut(void* to_staging, const void* from, uint64_t bytes) {
  queue().Check(cudaMemcpyAsync(to_staging, from, bytes, cudaMemcpyDeviceToHost, stream_),
                "copy from the device");
}

// Unified addressing tells which devices the addresses are of.
void CudaDevice::CopyRows(const Rows& rows) {
  queue().Check(cudaMemcpy2DAsync(rows.to, rows.to_stride, rows.from, rows.from_stride, rows.bytes, rows.rows,
                                  cudaMemcpyDefault, stream_),
                "copy between devices");
}

absl::Status CudaDevice::Finish() {
  queue().Check(cudaEventRecord(done_, stream_), "recording an event");
  queue().Check(cudaEventSynchronize(done_), "waiting for the stream");
  if (options_.watchdog == nullptr) return queue().status();
  if (queue().status().ok()) {
    options_.watchdog->End(options_.shard);
  } else {
    options_.watchdog->Report(options_.shard, queue().status());
  }
  return queue().status();
}

absl::StatusOr<std::unique_ptr<CapturedWork>> CudaDevice::Capture(absl::FunctionRef<absl::Status()> enqueue) {
  if (!can_capture_) return nullptr;
  RETURN_IF_ERROR(queue().status());
  RETURN_IF_ERROR(
      Error(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "beginning to record"));
  const absl::Status enqueued = enqueue();
  cudaGraph_t graph = nullptr;
  const absl::Status ended = Error(cudaStreamEndCapture(stream_, &graph), "recording");
  cudaGraphExec_t exec = nullptr;
  absl::Status made = ended;
  if (ended.ok()) {
    made = Error(cudaGraphInstantiate(&exec, graph, 0), "making what was recorded ready");
    cudaGraphDestroy(graph);
  }
  std::unique_ptr<Graph> work;
  if (made.ok()) work = std::make_unique<Graph>(options_.ordinal, exec);
  RETURN_IF_ERROR(enqueued);
  RETURN_IF_ERROR(queue().status());
  RETURN_IF_ERROR(made);
  // What its launches need on the device is there before anyone asks what is free.
  RETURN_IF_ERROR(Error(cudaGraphUpload(exec, stream_), "copying what was recorded to the device"));
  return work;
}

void CudaDevice::Replay(const CapturedWork& work) {
  queue().Check(cudaGraphLaunch(static_cast<const Graph&>(work).exec(), stream_), "launch of a graph");
}

}  // namespace millrace
