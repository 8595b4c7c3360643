// What a worker without the model file gets of it from the coordinator.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/transport/credentials.h"
#include "grpcpp/grpcpp.h"
#include "millrace/v1/cluster.grpc.pb.h"
#include "model/gguf_file.h"
#include "model/model_chunks.h"
#include "worker/control/model_cache.h"

namespace millrace {

// Ends waiting for the coordinator within a moment, from any thread and for good.
class FetchInterrupter {
 public:
  void Interrupt() { interrupted_ = true; }
  bool interrupted() const { return interrupted_; }

 private:
  std::atomic<bool> interrupted_{false};
};

struct ModelFetchOptions {
  std::string coordinator_address;
  SharedCredentials credentials;  // null: plain text
  std::string secret;
  std::string manifest_sha256;  // Welcome's
  std::string fingerprint;      // Welcome's
  std::string folder;           // of the cache
  FetchInterrupter* interrupter = nullptr;
  // Called between chunks, and about ten times a second while this waits for another process. Thread: the
  // caller's.
  std::function<void()> on_turn;
  // Bytes of what is checked or fetched now, about once a second and at the end of a fetch. Thread: the
  // caller's.
  std::function<void(uint64_t done, uint64_t total)> on_progress;
  // So long without a word from the coordinator, and a call is broken off, and made again up to twice.
  absl::Duration silence = absl::Seconds(30);
};

// Thread: control.
class ModelFetch {
 public:
  // Gets the manifest, and of the file the header and what is checked when a model is opened. Waits where
  // there is no connection, as Need does. DATA_LOSS,
  // INVALID_ARGUMENT: not the manifest that Welcome named. Errors of Need.
  static absl::StatusOr<std::unique_ptr<ModelFetch>> Open(ModelFetchOptions options);

  const std::string& fingerprint() const { return manifest_.fingerprint; }

  // A file as large as the model that holds the header and what Need had last, and anything elsewhere. Errors
  // of Need and of GgufFile::Open.
  absl::StatusOr<std::unique_ptr<GgufFile>> OpenFile();

  // Afterwards the file holds these ranges, each chunk checked by its hash: once by this object, whoever
  // wrote it. True: something was fetched, so a mapping made before is to be made anew. `what` begins each
  // line of the log. RESOURCE_EXHAUSTED: no room on the disk. DATA_LOSS: a chunk came damaged again and
  // again. UNAVAILABLE: nothing came, however often it was asked for. CANCELLED: interrupted. Errors of
  // ModelCache.
  absl::StatusOr<bool> Need(absl::string_view what, absl::Span<const ByteRange> ranges);

 private:
  struct Call;
  class ProgressLog;
  explicit ModelFetch(ModelFetchOptions options);
  absl::Status GetManifest();
  absl::Status OpenHeader();
  absl::Status Lock(absl::string_view what);
  absl::StatusOr<std::vector<uint32_t>> Missing(absl::string_view what, absl::Span<const uint32_t> chunks);
  absl::Status FetchAll(absl::string_view what, const std::vector<uint32_t>& missing);
  absl::Status FetchSome(absl::Span<const uint32_t> chunks,
                         const std::function<absl::Status(uint32_t)>& on_stored);
  void Tell(ProgressLog& progress, uint32_t chunk);
  bool Turn();
  bool Await(Call& call);
  absl::Status EndOf(const Call& call, const grpc::Status& ended) const;

  const ModelFetchOptions options_;
  std::unique_ptr<v1::Cluster::Stub> stub_;
  ModelManifest manifest_;
  std::unique_ptr<ModelCache> cache_;
  std::vector<bool> checked_;      // by chunk: its hash was compared by this object
  std::vector<ByteRange> header_;  // of the file, what every user of it reads
  int generation_ = 0;             // of the cache, that checked_ is about
  int mapped_generation_ = 0;      // that OpenFile opened last
};

}  // namespace millrace
