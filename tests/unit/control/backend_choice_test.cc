#include "worker/control/backend_choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "worker/device/cuda_library.h"

namespace millrace {
namespace {

using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::StartsWith;

std::string Library(const std::string& name) {
  return std::string(MILLRACE_FAKE_CUDA) + "/" + name + ".so";
}

absl::Status LoadStatus(const std::string& path) {
  const absl::Status status = CudaLibrary::Load(path).status();
  EXPECT_THAT(std::string(status.message()), ::testing::Not(HasSubstr("\n")));
  return status;
}

TEST(CudaLibraryTest, SaysInOneLineWhyItDoesNotServe) {
  const absl::Status missing = LoadStatus("/nowhere/lib.so");
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.message()), StartsWith("there is no /nowhere/lib.so"));

  const std::string text = ::testing::TempDir() + "/text.so";
  std::ofstream(text) << "not a library";
  EXPECT_THAT(std::string(LoadStatus(text).message()), StartsWith("cannot load "));

  const absl::Status other = LoadStatus(Library("other_build"));
  EXPECT_EQ(other.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(other.message()),
              HasSubstr("other_build.so was built for another Millrace (another build; this one is "));
  EXPECT_THAT(std::string(LoadStatus(Library("no_entry")).message()),
              HasSubstr("another Millrace (it has no entry points;"));
  EXPECT_EQ(LoadStatus(Library("no_driver")), absl::FailedPreconditionError("there is no driver"));
}

TEST(CudaLibraryTest, ChecksDevices) {
  const auto library = CudaLibrary::Load(Library("three_devices"));
  ASSERT_TRUE(library.ok()) << library.status();
  EXPECT_EQ((*library)->devices().size(), 3u);
  EXPECT_TRUE((*library)->CheckDevices({0, 1, 0}).ok());
  EXPECT_EQ((*library)->CheckDevices({0, 2}).message(),
            "CUDA device 2, Fake 75, has compute capability 7.5; 8.0 or more is needed");
  EXPECT_EQ((*library)->CheckDevices({3}).message(), "there is no CUDA device 3: 3 visible, numbered from 0");
  EXPECT_EQ((*library)->CheckDevices({-1}).code(), absl::StatusCode::kFailedPrecondition);
  CudaDevicesOptions options;
  options.devices = {0, 1};
  EXPECT_EQ((*library)->Open(options).status(), absl::UnimplementedError("opened 2"));
  options.devices = {2};
  EXPECT_EQ((*library)->Open(options).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(CudaLibraryTest, GivesEachWorkerOfAMachineItsDevices) {
  EXPECT_THAT(DevicesOfWorker(0, 2), ElementsAre(0, 1));
  EXPECT_THAT(DevicesOfWorker(3, 2), ElementsAre(6, 7));
  EXPECT_THAT(DevicesOfWorker(2, 1), ElementsAre(2));
}

StageBackendOptions Chosen(const std::string& backend, const std::string& library,
                           const std::vector<int64_t>& devices = {}) {
  StageBackendOptions options;
  options.backend = backend;
  options.cuda_devices = devices;
  options.shards = std::max<int64_t>(1, devices.size());
  const absl::Status status = ChooseBackend(Library(library), &options);
  EXPECT_TRUE(status.ok()) << status;
  return options;
}

TEST(BackendChoiceTest, TakesCudaWhereItServes) {
  for (const char* backend : {"auto", "cuda"}) {
    const StageBackendOptions options = Chosen(backend, "three_devices");
    EXPECT_EQ(BackendFamily(options), "cuda/sm_90");
    EXPECT_EQ(CudaKernelsName(options), "sm_90, Fake 90");
    EXPECT_THAT(SupportedActivations(options), ElementsAre(ActivationType::kInt8));
    EXPECT_THAT(SupportedKvTypes(options), ElementsAre(KvType::kF16, KvType::kI8));
    EXPECT_EQ(BackendMemoryBytes(options), 1500u);
  }
  EXPECT_EQ(BackendFamily(Chosen("cpu", "three_devices")), "cpu");
}

TEST(BackendChoiceTest, FallsBackToTheCpuOnlyWhenThatIsLeftToIt) {
  for (const char* library : {"no_driver", "other_build", "not_there"}) {
    EXPECT_EQ(BackendFamily(Chosen("auto", library)), "cpu") << library;
  }
  EXPECT_EQ(BackendFamily(Chosen("auto", "three_devices", {2})), "cpu");
  StageBackendOptions options;
  options.backend = "cuda";
  EXPECT_EQ(ChooseBackend(Library("no_driver"), &options),
            absl::FailedPreconditionError("--backend cuda: there is no driver"));
  options.local_rank = 3;
  EXPECT_THAT(std::string(ChooseBackend(Library("three_devices"), &options).message()),
              HasSubstr("there is no CUDA device 3"));
}

TEST(BackendChoiceTest, NamesTheVersionOfCublas) {
  EXPECT_EQ(BackendFamily(Chosen("cuda", "cublas")), "cuda/sm_90/cublas-130200");
}

TEST(BackendChoiceTest, NamesWhatBitsDependOn) {
  StageBackendOptions options = Chosen("cuda", "three_devices", {0, 1});
  EXPECT_EQ(BackendFamily(options), "cuda/sm_90");
  EXPECT_EQ(CudaKernelsName(options), "sm_90, 2 x Fake 90");
  EXPECT_EQ(BackendMemoryBytes(options), 4500u);
  options.collective = "allreduce";
  EXPECT_EQ(BackendFamily(options), "cuda/sm_90/allreduce-2");
  // Shards of one device add their sums in order, whatever is asked for.
  options.cuda_devices = {1, 1};
  EXPECT_EQ(BackendFamily(options), "cuda/sm_90");
  EXPECT_EQ(BackendMemoryBytes(options), 3000u);
}

TEST(BackendChoiceTest, RefusesTypesThatADeviceDoesNotHave) {
  const StageBackendOptions options = Chosen("cuda", "three_devices");
  StageBackendChoice choice;
  choice.numeric = {ActivationType::kInt8, KvType::kF32};
  EXPECT_EQ(MakeStageDevices(options, choice, {0}).status(),
            absl::FailedPreconditionError("this worker's backend, cuda/sm_90, cannot compute with int8 "
                                          "activations and f32 keys and values"));
  choice.numeric = {ActivationType::kF32, KvType::kF16};
  EXPECT_EQ(MakeStageDevices(options, choice, {0}).status().code(), absl::StatusCode::kFailedPrecondition);
  choice.numeric = {ActivationType::kInt8, KvType::kF16};
  EXPECT_EQ(MakeStageDevices(options, choice, {0}).status(), absl::UnimplementedError("opened 1"));
}

TEST(BackendChoiceTest, RefusesFlagsThatDoNotFit) {
  const auto why = [](const StageBackendOptions& options) {
    return std::string(CheckBackendFlags(options).message());
  };
  StageBackendOptions options;
  EXPECT_EQ(why(options), "");
  options.cuda_devices = {0, 1};
  EXPECT_EQ(why(options),
            "--devices: 2 devices for 1 shards; --tensor-parallel says how many shards there are");
  options.shards = 2;
  EXPECT_EQ(why(options), "");
  options.backend = "cpu";
  EXPECT_EQ(why(options), "--devices: these are CUDA devices, and --backend is cpu");
  options.backend = "gpu";
  EXPECT_EQ(why(options), "--backend: 'gpu' is not auto, cpu or cuda");
  options.backend = "auto";
  options.collective = "ring";
  EXPECT_EQ(why(options), "--collective: 'ring' is not ordered or allreduce");
}

}  // namespace
}  // namespace millrace
