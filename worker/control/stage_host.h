// One worker's stage through the epochs: loads layers, opens and closes the compute loop and the hop to the
// next stage.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/buffer_pool.h"
#include "common/transport/hop_link.h"
#include "common/transport/hop_listener.h"
#include "common/worker_profile.h"
#include "millrace/v1/cluster.pb.h"
#include "model/gguf_file.h"
#include "model/hyper_parameters.h"
#include "worker/control/epoch_router.h"
#include "worker/control/model_fetch.h"
#include "worker/control/stage_backends.h"
#include "worker/device/device.h"
#include "worker/kv/kv_cache.h"
#include "worker/stage/stage_compute.h"
#include "worker/stage/stage_runner.h"

namespace millrace {

// Most host memory for a KV cache, unless the user says otherwise. Devices give what is free.
inline constexpr uint64_t kHostKvMemoryBytes = uint64_t{1} << 30;

struct StageHostOptions {
  StageBackendOptions backends;
  HopListener* listener = nullptr;
  EpochRouter* router = nullptr;
  SharedCredentials credentials;  // for hops; null: plain text
  std::string secret;
  std::string coordinator_address;
  uint64_t kv_memory_bytes = 0;    // 0: kHostKvMemoryBytes, where the KV cache is in host memory
  StageComputeFactory make_stage;  // empty: StageModel::Create
  // The epoch cannot go on (the hop broke, an input was at fault). Thread: grpc or compute.
  std::function<void(Epoch, absl::Status)> on_failed;
  // Bytes of weights read. Thread: control.
  std::function<void(uint64_t done, uint64_t total)> on_progress;
};

// Thread: control, but for microbatches_done().
class StageHost {
 public:
  explicit StageHost(StageHostOptions options);
  ~StageHost();

  // Opens the model file. Errors as GgufFile::Open and ReadHyperParameters.
  absl::Status OpenModel(const std::string& path);
  // The model is what the coordinator sends: layers are fetched when they are assigned. Errors as OpenModel
  // and ModelFetch::OpenFile.
  absl::Status OpenFetchedModel(std::unique_ptr<ModelFetch> fetch);
  // INVALID_ARGUMENT: the model cannot be cut into as many shards as there are backends. REQUIRES:
  // has_model().
  absl::Status CheckShards() const;
  bool has_model() const { return file_ != nullptr; }
  const std::string& fingerprint() const { return fingerprint_; }

  // How fast this worker runs the model with what the coordinator chose. INVALID_ARGUMENT,
  // RESOURCE_EXHAUSTED: as MeasureProfile. Errors of ToBackendChoice and MakeStageDevices. REQUIRES:
  // has_model().
  absl::StatusOr<WorkerProfile> Measure(const v1::Measure& measure);

  // Ends the former epoch, loads the layers unless they are loaded, and says what room there is. Upstream may
  // connect afterwards. INVALID_ARGUMENT, RESOURCE_EXHAUSTED: this worker cannot hold the stage. Errors of
  // ToBackendChoice and MakeStageDevices.
  absl::StatusOr<v1::Loaded> Assign(const v1::Assign& assign);

  // Allocates the KV cache, connects to the next stage and starts computing. REQUIRES: Assign of this epoch
  // was OK.
  absl::Status Activate(const v1::Activate& activate);

  void EndEpoch();

  // Whether the hop that Activate connected goes by a Unix socket.
  bool hop_is_local() const { return hop_is_local_; }

  // Thread: any.
  uint64_t microbatches_done() const;

 private:
  absl::Status ChooseBackends(const StageBackendChoice& choice);
  KvCache::Shape CacheShape(uint32_t blocks) const;
  void FillShards(v1::Loaded* loaded) const;
  absl::Status TakeFile(std::unique_ptr<GgufFile> file);
  absl::Status FetchLayers(const StageLayout& layout, uint32_t stage);
  absl::Status LoadLayers(const v1::Assign& assign);
  absl::StatusOr<uint64_t> KvBlocks(uint64_t transit_bytes) const;
  absl::Status ConnectNext();
  bool ConnectLocally();
  HopLinkOptions LinkOptions(const std::string& address) const;
  void StartComputing(uint32_t kv_blocks);
  absl::Status Emit(StageOutput output);

  const StageHostOptions options_;
  std::unique_ptr<ModelFetch> fetch_;  // null: the file is whole
  std::unique_ptr<GgufFile> file_;
  HyperParameters hyper_parameters_;
  std::string fingerprint_;
  BufferPool result_pool_;

  // What is loaded; survives epochs.
  StageBackendChoice choice_;
  std::unique_ptr<DeviceGroup> devices_;  // by shard; null until the first choice
  StageLayout layout_;
  uint32_t max_rows_ = 0;
  uint32_t context_tokens_ = 0;
  uint32_t block_tokens_ = 0;
  std::unique_ptr<StageCompute> stage_;

  // The current epoch.
  v1::Assign assign_;
  std::unique_ptr<KvCache> cache_;
  std::shared_ptr<StageInbox> inbox_;
  std::unique_ptr<HopLink> link_;
  bool hop_is_local_ = false;
  std::unique_ptr<StageRunner> runner_;
  std::thread compute_;
  mutable Mutex done_mutex_;
  const StageRunner* counted_ ABSL_GUARDED_BY(done_mutex_) = nullptr;
};

}  // namespace millrace
