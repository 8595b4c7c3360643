#include "faults.h"

#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "device_memory.h"
#include "kernel_launch.h"
#include "streams.h"

namespace cuda_on_cpu {
namespace internal {
namespace {

// CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"; multiprocessors of T4, A100,
// A10, H100 SXM and B200.
constexpr Profile kProfiles[] = {{"sm_75", 75, 64 * 1024, 40},
                                 {"sm_80", 80, 163 * 1024, 108},
                                 {"sm_86", 86, 99 * 1024, 72},
                                 {"sm_90", 90, 227 * 1024, 132},
                                 {"sm_100", 100, 227 * 1024, 148}};

const Profile* FindProfile(const std::string& name) {
  for (const Profile& profile : kProfiles) {
    if (name == profile.name) return &profile;
  }
  return nullptr;
}

struct Fault {
  std::string name;  // of the function, or a part of the kernel's
  int left;          // calls until it strikes
  cudaError_t error;
  bool hang = false;
};

struct State {
  std::mutex mutex;
  std::condition_variable released;
  Machine machine;
  const Profile* profile = nullptr;
  std::vector<Fault> calls;
  std::vector<Fault> kernels;
  std::map<int, cudaError_t> lost;
  int hanging = 0;
  uint64_t releases = 0;
};

[[noreturn]] void Refuse(absl::string_view text) {
  std::fprintf(stderr, "MILLRACE_CUDA_ON_CPU: cannot read '%s'\n", std::string(text).c_str());
  std::abort();
}

template <class Number>
Number ReadNumber(absl::string_view text) {
  Number number;
  if (!absl::SimpleAtoi(text, &number)) Refuse(text);
  return number;
}

uint64_t ReadBytes(absl::string_view text) {
  if (absl::ConsumeSuffix(&text, "G")) return ReadNumber<uint64_t>(text) << 30;
  if (absl::ConsumeSuffix(&text, "M")) return ReadNumber<uint64_t>(text) << 20;
  return ReadNumber<uint64_t>(text);
}

void ReadEnvironment(State* state) {
  const char* const all = std::getenv("MILLRACE_CUDA_ON_CPU");
  if (all == nullptr || *all == '\0') return;
  for (absl::string_view item : absl::StrSplit(all, ',')) {
    const std::pair<absl::string_view, absl::string_view> setting =
        absl::StrSplit(item, absl::MaxSplits('=', 1));
    const absl::string_view value = setting.second;
    if (setting.first == "devices") {
      state->machine.devices = ReadNumber<int>(value);
    } else if (setting.first == "profile") {
      state->machine.profile = std::string(value);
    } else if (setting.first == "memory") {
      state->machine.memory_bytes = ReadBytes(value);
    } else if (setting.first == "seed") {
      state->machine.seed = ReadNumber<uint64_t>(value);
    } else if (setting.first == "driver") {
      state->machine.driver_version = ReadNumber<int>(value);
    } else {
      const std::vector<std::string> parts = absl::StrSplit(value, ':');
      const bool hang = setting.first == "hangkernel";
      if (parts.size() != (hang ? 2 : 3)) Refuse(item);
      const auto error = hang ? cudaSuccess : static_cast<cudaError_t>(ReadNumber<int>(parts[2]));
      const Fault fault = {parts[0], ReadNumber<int>(parts[1]), error, hang};
      if (setting.first == "fail") {
        state->calls.push_back(fault);
      } else if (hang || setting.first == "failkernel") {
        state->kernels.push_back(fault);
      } else {
        Refuse(item);
      }
    }
  }
}

void Use(State* state) {
  state->profile = FindProfile(state->machine.profile);
  if (state->profile == nullptr) Refuse(state->machine.profile);
  SetSeed(state->machine.seed);
}

// Never destroyed: streams' threads may outlive everything else.
State& TheState() {
  static State* const state = [] {
    auto* const made = new State;
    ReadEnvironment(made);
    Use(made);
    return made;
  }();
  return *state;
}

thread_local int current_device = 0;
thread_local cudaError_t last_error = cudaSuccess;

// Counts a call, or a kernel's run; takes out the fault that strikes.
template <class Matches>
bool Strike(std::vector<Fault>* faults, const Matches& matches, Fault* struck) {
  for (auto fault = faults->begin(); fault != faults->end(); ++fault) {
    if (!matches(fault->name) || --fault->left > 0) continue;
    *struck = *fault;
    faults->erase(fault);
    return true;
  }
  return false;
}

cudaError_t ErrorBefore(const char* function, Needs needs) {
  State& state = TheState();
  const std::lock_guard lock(state.mutex);
  Fault fault;
  if (Strike(
          &state.calls, [&](const std::string& name) { return name == function; }, &fault))
    return fault.error;
  constexpr int kRuntimeVersion = CUDART_VERSION;
  if (needs == Needs::kNothing) return cudaSuccess;
  if (state.machine.driver_version / 1000 < kRuntimeVersion / 1000) return cudaErrorInsufficientDriver;
  if (state.machine.devices == 0) return cudaErrorNoDevice;
  if (needs == Needs::kDriver) return cudaSuccess;
  const auto lost = state.lost.find(current_device);
  return lost == state.lost.end() ? cudaSuccess : lost->second;
}

}  // namespace

const Machine& TheMachine() {
  return TheState().machine;
}
const Profile& TheProfile() {
  return *TheState().profile;
}
int CurrentDevice() {
  return current_device;
}
void SetCurrentDevice(int device) {
  current_device = device;
}

cudaError_t Call(const char* function, Needs needs, const std::function<cudaError_t()>& body) {
  cudaError_t error = ErrorBefore(function, needs);
  if (error == cudaSuccess) error = body();
  if (error != cudaSuccess && error != cudaErrorNotReady) last_error = error;
  return error;
}

cudaError_t TakeLastError(bool keep) {
  const cudaError_t error = last_error;
  if (!keep) last_error = cudaSuccess;
  return error;
}

cudaError_t LostError(int device) {
  State& state = TheState();
  const std::lock_guard lock(state.mutex);
  const auto lost = state.lost.find(device);
  return lost == state.lost.end() ? cudaSuccess : lost->second;
}

void LoseDevice(int device, cudaError_t error) {
  State& state = TheState();
  const std::lock_guard lock(state.mutex);
  state.lost.emplace(device, error);
}

bool SomethingHangs() {
  State& state = TheState();
  const std::lock_guard lock(state.mutex);
  return state.hanging > 0;
}

void RunKernelOrFault(const KernelLaunch& launch, int device) {
  State& state = TheState();
  {
    std::unique_lock lock(state.mutex);
    Fault fault;
    if (state.lost.contains(device)) return;
    if (!state.kernels.empty()) {
      const std::string name = KernelName(launch.function);
      const auto matches = [&](const std::string& part) { return absl::StrContains(name, part); };
      if (Strike(&state.kernels, matches, &fault)) {
        if (!fault.hang) {
          state.lost.emplace(device, fault.error);
          return;
        }
        ++state.hanging;
        const uint64_t release = state.releases;
        state.released.wait(lock, [&] { return state.releases != release; });
        --state.hanging;
      }
    }
  }
  RunKernel(launch);
}

}  // namespace internal

void SetMachine(const Machine& machine) {
  internal::State& state = internal::TheState();
  const std::lock_guard lock(state.mutex);
  state.machine = machine;
  state.calls.clear();
  state.kernels.clear();
  state.lost.clear();
  internal::Use(&state);
}

void FailCall(const std::string& function, int nth, cudaError_t error) {
  internal::State& state = internal::TheState();
  const std::lock_guard lock(state.mutex);
  state.calls.push_back({function, nth, error});
}

void FailKernel(const std::string& part, int nth, cudaError_t error) {
  internal::State& state = internal::TheState();
  const std::lock_guard lock(state.mutex);
  state.kernels.push_back({part, nth, error});
}

void HangKernel(const std::string& part, int nth) {
  internal::State& state = internal::TheState();
  const std::lock_guard lock(state.mutex);
  state.kernels.push_back({part, nth, cudaSuccess, true});
}

void ReleaseHangs() {
  internal::State& state = internal::TheState();
  const std::lock_guard lock(state.mutex);
  state.kernels.clear();
  ++state.releases;
  state.released.notify_all();
}

size_t MaxSharedBytesPerBlock() {
  return internal::TheProfile().shared_bytes;
}

Census TakeCensus() {
  return {internal::Streams(), internal::Events(), internal::Graphs(), internal::Allocations(false),
          internal::Allocations(true)};
}

bool DeviceMemoryIsProtected() {
  return internal::MemoryIsProtected();
}

}  // namespace cuda_on_cpu
