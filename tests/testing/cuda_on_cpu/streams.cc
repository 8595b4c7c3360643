#include "streams.h"

#include <atomic>
#include <chrono>
#include <utility>

#include "device_memory.h"
#include "faults.h"
#include "kernel_launch.h"
#include "stream_work.h"

namespace cuda_on_cpu {
namespace internal {
namespace {

struct Registry {
  std::recursive_mutex mutex;
  std::set<cudaStream_t> streams;
  std::set<std::shared_ptr<Capture>> captures;
  std::atomic<int> events = 0;
  std::atomic<int> graphs = 0;
  uint64_t made = 0;  // streams
};

// Never destroyed: threads may outlive everything else.
Registry& TheRegistry() {
  static Registry* const registry = new Registry;
  return *registry;
}

using Lock = std::lock_guard<std::recursive_mutex>;

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// The default streams would order everything: no part of Millrace uses them.
bool IsStream(cudaStream_t stream) {
  return TheRegistry().streams.contains(stream);
}

cudaError_t EndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const std::shared_ptr<Capture> capture = stream->capture;
  *graph = nullptr;
  if (capture == nullptr || capture->origin != stream) return cudaErrorIllegalState;
  if (capture->thread_local_mode && capture->owner != std::this_thread::get_id()) {
    return cudaErrorStreamCaptureWrongThread;
  }
  Registry& registry = TheRegistry();
  for (cudaStream_t other : registry.streams) {
    if (other->capture == capture) other->capture = nullptr;
  }
  registry.captures.erase(capture);
  if (capture->invalid) return cudaErrorStreamCaptureInvalidated;
  if (!capture->unjoined.empty()) return cudaErrorStreamCaptureUnjoined;
  *graph = capture->graph.release();
  ++registry.graphs;
  return cudaSuccess;
}

cudaError_t Record(cudaEvent_t event, cudaStream_t stream) {
  if (event == nullptr || !IsStream(stream)) return cudaErrorInvalidResourceHandle;
  if (event->device != stream->device) return cudaErrorInvalidResourceHandle;
  event->captured_in = stream->capture;
  event->captured_on = stream;
  if (stream->capture != nullptr)
    return stream->capture->invalid ? cudaErrorStreamCaptureInvalidated : cudaSuccess;
  std::shared_ptr<EventTimes> times = event->times;
  uint64_t number = 0;
  {
    const std::lock_guard lock(times->mutex);
    number = ++times->recorded;
  }
  stream->Add([times, number] {
    const std::lock_guard lock(times->mutex);
    times->completed = std::max(times->completed, number);
    times->seconds = Seconds();
    times->changed.notify_all();
  });
  return cudaSuccess;
}

cudaError_t WaitFor(cudaStream_t stream, cudaEvent_t event) {
  if (event == nullptr || !IsStream(stream)) return cudaErrorInvalidResourceHandle;
  if (event->captured_in != nullptr) {
    if (stream->capture != nullptr && stream->capture != event->captured_in) {
      return cudaErrorStreamCaptureMerge;
    }
    // The stream joins the capture, or the origin waits for a stream that did.
    stream->capture = event->captured_in;
    if (stream != stream->capture->origin) stream->capture->unjoined.insert(stream);
    if (stream == stream->capture->origin) stream->capture->unjoined.erase(event->captured_on);
    return cudaSuccess;
  }
  std::shared_ptr<EventTimes> times = event->times;
  uint64_t number = 0;
  {
    const std::lock_guard lock(times->mutex);
    number = times->recorded;
  }
  // Work outside a capture cannot be waited for from inside.
  if (stream->capture != nullptr && number != 0) {
    stream->capture->invalid = true;
    return cudaErrorStreamCaptureIsolation;
  }
  if (number == 0) return cudaSuccess;
  stream->Add([times, number] {
    std::unique_lock lock(times->mutex);
    times->changed.wait(lock, [&] { return times->completed >= number; });
  });
  return cudaSuccess;
}

}  // namespace

cudaError_t Enqueue(cudaStream_t stream, StreamWork work) {
  const Lock lock(TheRegistry().mutex);
  if (!IsStream(stream)) return cudaErrorInvalidResourceHandle;
  if (stream->capture == nullptr) {
    stream->Add(std::move(work));
    return cudaSuccess;
  }
  if (stream->capture->invalid) return cudaErrorStreamCaptureInvalidated;
  stream->capture->graph->nodes.push_back(std::move(work));
  if (stream != stream->capture->origin) stream->capture->unjoined.insert(stream);
  return cudaSuccess;
}

void WaitForDevice(int device) {
  std::vector<cudaStream_t> streams;
  {
    const Lock lock(TheRegistry().mutex);
    for (cudaStream_t stream : TheRegistry().streams) {
      if (stream->device == device) streams.push_back(stream);
    }
  }
  for (cudaStream_t stream : streams) stream->WaitUntilIdle();
}

bool SpoilCaptures() {
  const Lock lock(TheRegistry().mutex);
  bool any = false;
  for (const std::shared_ptr<Capture>& capture : TheRegistry().captures) {
    if (capture->owner != std::this_thread::get_id() && capture->thread_local_mode) continue;
    capture->invalid = any = true;
  }
  return any;
}

int Streams() {
  const Lock lock(TheRegistry().mutex);
  return static_cast<int>(TheRegistry().streams.size());
}
int Events() {
  return TheRegistry().events;
}
int Graphs() {
  return TheRegistry().graphs;
}

}  // namespace internal

cudaError_t EnqueueWork(cudaStream_t stream, std::function<void()> work) {
  return internal::Enqueue(stream, std::move(work));
}

cudaError_t EnqueueKernel(cudaStream_t stream, KernelLaunch launch) {
  return internal::Call("cudaLaunchKernel", internal::Needs::kDevice, [&] {
    const internal::Lock lock(internal::TheRegistry().mutex);
    if (!internal::IsStream(stream)) return cudaErrorInvalidResourceHandle;
    const int device = stream->device;
    if (device != internal::CurrentDevice()) return cudaErrorInvalidResourceHandle;
    return internal::Enqueue(
        stream, [launch = std::move(launch), device] { internal::RunKernelOrFault(launch, device); });
  });
}

}  // namespace cuda_on_cpu

using namespace cuda_on_cpu::internal;

CUstream_st::CUstream_st(int device_number, uint64_t seed)
    : device(device_number), thread_(Main, shared_, Random(seed)) {}

CUstream_st::~CUstream_st() {
  {
    const std::lock_guard lock(shared_->mutex);
    shared_->closing = true;
    shared_->changed.notify_all();
  }
  if (SomethingHangs()) {
    thread_.detach();
  } else {
    thread_.join();
  }
}

void CUstream_st::Add(StreamWork work) {
  const std::lock_guard lock(shared_->mutex);
  shared_->work.push_back(std::move(work));
  shared_->changed.notify_all();
}

bool CUstream_st::Idle() {
  const std::lock_guard lock(shared_->mutex);
  return shared_->work.empty() && !shared_->busy;
}

void CUstream_st::WaitUntilIdle() {
  std::unique_lock lock(shared_->mutex);
  shared_->changed.wait(lock, [&] { return shared_->work.empty() && !shared_->busy; });
}

void CUstream_st::Main(std::shared_ptr<Shared> shared, Random random) {
  const DeviceAccess access;
  std::unique_lock lock(shared->mutex);
  while (true) {
    shared->changed.wait(lock, [&] { return shared->closing || !shared->work.empty(); });
    if (shared->work.empty()) return;
    const StreamWork work = std::move(shared->work.front());
    shared->work.pop_front();
    shared->busy = true;
    lock.unlock();
    // So that whoever does not wait comes too early, at one place or another.
    if (random.Below(8) == 0) std::this_thread::yield();
    work();
    lock.lock();
    shared->busy = false;
    shared->changed.notify_all();
  }
}

extern "C" {

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  return Call("cudaStreamCreateWithFlags", Needs::kDevice, [&] {
    if (flags > cudaStreamNonBlocking) return cudaErrorInvalidValue;
    if (SpoilCaptures()) return cudaErrorStreamCaptureUnsupported;
    Registry& registry = TheRegistry();
    const Lock lock(registry.mutex);
    *stream = new CUstream_st(CurrentDevice(), TheMachine().seed + 1000003 * ++registry.made);
    registry.streams.insert(*stream);
    return cudaSuccess;
  });
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  return Call("cudaStreamDestroy", Needs::kDevice, [&] {
    {
      const Lock lock(TheRegistry().mutex);
      if (TheRegistry().streams.erase(stream) == 0) return cudaErrorInvalidResourceHandle;
      if (stream->capture != nullptr) TheRegistry().captures.erase(stream->capture);
    }
    delete stream;
    return cudaSuccess;
  });
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return Call("cudaStreamSynchronize", Needs::kDevice, [&] {
    {
      const Lock lock(TheRegistry().mutex);
      if (!IsStream(stream)) return cudaErrorInvalidResourceHandle;
      if (stream->capture != nullptr) {
        stream->capture->invalid = true;
        return cudaErrorStreamCaptureUnsupported;
      }
    }
    stream->WaitUntilIdle();
    return LostError(stream->device);
  });
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
  return Call("cudaStreamQuery", Needs::kDevice, [&] {
    const Lock lock(TheRegistry().mutex);
    if (!IsStream(stream)) return cudaErrorInvalidResourceHandle;
    if (stream->capture != nullptr) {
      stream->capture->invalid = true;
      return cudaErrorStreamCaptureUnsupported;
    }
    return stream->Idle() ? LostError(stream->device) : cudaErrorNotReady;
  });
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  return Call("cudaStreamWaitEvent", Needs::kDevice, [&] {
    const Lock lock(TheRegistry().mutex);
    return WaitFor(stream, event);
  });
}

cudaError_t cudaDeviceSynchronize() {
  return Call("cudaDeviceSynchronize", Needs::kDevice, [] {
    if (SpoilCaptures()) return cudaErrorStreamCaptureUnsupported;
    WaitForDevice(CurrentDevice());
    return LostError(CurrentDevice());
  });
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  return Call("cudaEventCreateWithFlags", Needs::kDevice, [&] {
    *event = new CUevent_st;
    (*event)->device = CurrentDevice();
    (*event)->timed = (flags & cudaEventDisableTiming) == 0;
    ++TheRegistry().events;
    return cudaSuccess;
  });
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return cudaEventCreateWithFlags(event, cudaEventDefault);
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  return Call("cudaEventDestroy", Needs::kDevice, [&] {
    if (event == nullptr) return cudaErrorInvalidResourceHandle;
    delete event;
    --TheRegistry().events;
    return cudaSuccess;
  });
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return Call("cudaEventRecord", Needs::kDevice, [&] {
    const Lock lock(TheRegistry().mutex);
    return Record(event, stream);
  });
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return Call("cudaEventSynchronize", Needs::kDevice, [&] {
    if (event == nullptr) return cudaErrorInvalidResourceHandle;
    {
      const Lock lock(TheRegistry().mutex);
      if (event->captured_in != nullptr) return cudaErrorCapturedEvent;
    }
    EventTimes& times = *event->times;
    {
      std::unique_lock lock(times.mutex);
      const uint64_t number = times.recorded;
      times.changed.wait(lock, [&] { return times.completed >= number; });
    }
    return LostError(event->device);
  });
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  return Call("cudaEventQuery", Needs::kDevice, [&] {
    if (event == nullptr) return cudaErrorInvalidResourceHandle;
    const Lock registry_lock(TheRegistry().mutex);
    if (event->captured_in != nullptr) return cudaErrorCapturedEvent;
    const std::lock_guard lock(event->times->mutex);
    return event->times->completed >= event->times->recorded ? LostError(event->device) : cudaErrorNotReady;
  });
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  return Call("cudaEventElapsedTime", Needs::kDevice, [&] {
    if (start == nullptr || end == nullptr || !start->timed || !end->timed)
      return cudaErrorInvalidResourceHandle;
    double seconds[2];
    for (int i = 0; i < 2; ++i) {
      EventTimes& times = i == 0 ? *start->times : *end->times;
      const std::lock_guard lock(times.mutex);
      if (times.recorded == 0) return cudaErrorInvalidResourceHandle;
      if (times.completed < times.recorded) return cudaErrorNotReady;
      seconds[i] = times.seconds;
    }
    *milliseconds = static_cast<float>((seconds[1] - seconds[0]) * 1e3);
    return cudaSuccess;
  });
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  return Call("cudaStreamBeginCapture", Needs::kDevice, [&] {
    Registry& registry = TheRegistry();
    const Lock lock(registry.mutex);
    if (!IsStream(stream)) return cudaErrorInvalidResourceHandle;
    if (stream->capture != nullptr) return cudaErrorIllegalState;
    auto capture = std::make_shared<Capture>();
    capture->owner = std::this_thread::get_id();
    capture->origin = stream;
    capture->graph = std::make_unique<CUgraph_st>();
    capture->thread_local_mode = mode == cudaStreamCaptureModeThreadLocal;
    stream->capture = capture;
    // Relaxed ones forbid nothing.
    if (mode != cudaStreamCaptureModeRelaxed) registry.captures.insert(capture);
    return cudaSuccess;
  });
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  return Call("cudaStreamEndCapture", Needs::kDevice, [&] {
    const Lock lock(TheRegistry().mutex);
    if (!IsStream(stream)) return cudaErrorInvalidResourceHandle;
    return EndCapture(stream, graph);
  });
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  return Call("cudaStreamIsCapturing", Needs::kDevice, [&] {
    const Lock lock(TheRegistry().mutex);
    if (!IsStream(stream)) return cudaErrorInvalidResourceHandle;
    *status = stream->capture == nullptr ? cudaStreamCaptureStatusNone
              : stream->capture->invalid ? cudaStreamCaptureStatusInvalidated
                                         : cudaStreamCaptureStatusActive;
    return cudaSuccess;
  });
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  return Call("cudaGraphInstantiate", Needs::kDevice, [&] {
    if (graph == nullptr) return cudaErrorInvalidValue;
    *exec = new CUgraphExec_st{std::make_shared<const std::vector<StreamWork>>(graph->nodes)};
    ++TheRegistry().graphs;
    return cudaSuccess;
  });
}

cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t stream) {
  return Call("cudaGraphUpload", Needs::kDevice, [&] {
    if (exec == nullptr) return cudaErrorInvalidValue;
    return Enqueue(stream, [] {});
  });
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  return Call("cudaGraphLaunch", Needs::kDevice, [&] {
    if (exec == nullptr) return cudaErrorInvalidValue;
    return Enqueue(stream, [nodes = exec->nodes] {
      for (const StreamWork& node : *nodes) node();
    });
  });
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  return Call("cudaGraphExecDestroy", Needs::kDevice, [&] {
    if (exec == nullptr) return cudaErrorInvalidValue;
    delete exec;
    --TheRegistry().graphs;
    return cudaSuccess;
  });
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  return Call("cudaGraphDestroy", Needs::kDevice, [&] {
    if (graph == nullptr) return cudaErrorInvalidValue;
    delete graph;
    --TheRegistry().graphs;
    return cudaSuccess;
  });
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t*, size_t* count) {
  return Call("cudaGraphGetNodes", Needs::kDevice, [&] {
    *count = graph->nodes.size();
    return cudaSuccess;
  });
}

}  // extern "C"
