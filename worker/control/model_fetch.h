// What a worker without the model file gets of it from the coordinator.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/mutex.h"
#include "common/transport/credentials.h"
#include "grpcpp/grpcpp.h"
#include "millrace/v1/cluster.grpc.pb.h"
#include "model/gguf_file.h"
#include "model/model_chunks.h"
#include "worker/control/model_cache.h"

namespace millrace {

// Ends waiting for the coordinator, from any thread and for good.
class FetchInterrupter {
 public:
  void Interrupt();
  bool interrupted() const;

 private:
  friend class ModelFetch;
  // Null: none is under way.
  void SetCall(grpc::ClientContext* call);
  mutable Mutex mutex_;
  bool interrupted_ ABSL_GUARDED_BY(mutex_) = false;
  grpc::ClientContext* call_ ABSL_GUARDED_BY(mutex_) = nullptr;
};

struct ModelFetchOptions {
  std::string coordinator_address;
  SharedCredentials credentials;  // null: plain text
  std::string secret;
  std::string manifest_sha256;  // Welcome's
  std::string fingerprint;      // Welcome's
  std::string folder;           // of the cache
  FetchInterrupter* interrupter = nullptr;
  // Called between chunks and while this waits for another process. Thread: the caller's.
  std::function<void()> on_turn;
  // Bytes of what is fetched now, about once a second and at the end. Thread: the caller's.
  std::function<void(uint64_t done, uint64_t total)> on_progress;
};

// Thread: control.
class ModelFetch {
 public:
  // Gets the manifest, and of the file the header and what is checked when a model is opened. DATA_LOSS,
  // INVALID_ARGUMENT: not the manifest that Welcome named. Errors of Need.
  static absl::StatusOr<std::unique_ptr<ModelFetch>> Open(ModelFetchOptions options);

  const std::string& fingerprint() const { return manifest_.fingerprint; }

  // A file as large as the model that holds what was needed so far, and zeros elsewhere. Errors of Need and
  // of GgufFile::Open.
  absl::StatusOr<std::unique_ptr<GgufFile>> OpenFile();

  // Afterwards the file holds these ranges, each chunk checked by its hash: once by this object, whoever
  // wrote it. True: something was fetched, so a mapping made before is to be made anew. `what` begins each
  // line of the log. RESOURCE_EXHAUSTED: no room on the disk. DATA_LOSS: a chunk came damaged again and
  // again. UNAVAILABLE: the coordinator is gone. CANCELLED: interrupted. Errors of ModelCache.
  absl::StatusOr<bool> Need(absl::string_view what, absl::Span<const ByteRange> ranges);

 private:
  explicit ModelFetch(ModelFetchOptions options);
  absl::Status GetManifest();
  absl::Status OpenHeader();
  absl::Status Lock(absl::string_view what);
  absl::StatusOr<std::vector<uint32_t>> Missing(absl::string_view what, absl::Span<const uint32_t> chunks);
  absl::Status FetchAll(absl::string_view what, std::vector<uint32_t> missing);
  absl::Status FetchSome(absl::Span<const uint32_t> chunks, const std::function<void(uint32_t)>& on_stored);
  bool Turn();

  const ModelFetchOptions options_;
  std::unique_ptr<v1::Cluster::Stub> stub_;
  ModelManifest manifest_;
  std::unique_ptr<ModelCache> cache_;
  std::vector<bool> checked_;  // by chunk: its hash was compared by this object
};

}  // namespace millrace
