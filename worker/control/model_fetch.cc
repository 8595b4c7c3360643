#include "worker/control/model_fetch.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "common/transport/channels.h"
#include "common/transport/hop_link.h"

namespace millrace {
namespace {

constexpr int kAttempts = 3;  // without a single chunk in between
constexpr absl::Duration kReportInterval = absl::Seconds(1);
constexpr char kRopeDivisors[] = "rope_freqs.weight";
constexpr double kMegabyte = 1e6;

absl::StatusOr<ModelManifest> FromWire(const v1::ModelManifest& wire) {
  constexpr size_t kHash = std::tuple_size_v<Sha256Digest>;
  const auto chunks = static_cast<size_t>(wire.offsets_size());
  if (chunks > kMaxModelChunks || static_cast<size_t>(wire.sizes_size()) != chunks ||
      wire.sha256().size() != chunks * kHash) {
    return absl::InvalidArgumentError("manifest of the model: its lists are of different lengths");
  }
  ModelManifest manifest;
  manifest.fingerprint = wire.model_fingerprint();
  manifest.file_bytes = wire.file_bytes();
  manifest.header_chunks = wire.header_chunks();
  manifest.chunks.resize(chunks);
  for (size_t i = 0; i < chunks; ++i) {
    ModelChunk& chunk = manifest.chunks[i];
    chunk.offset = wire.offsets(static_cast<int>(i));
    chunk.size = wire.sizes(static_cast<int>(i));
    std::copy_n(wire.sha256().begin() + static_cast<ptrdiff_t>(i * kHash), kHash, chunk.sha256.begin());
  }
  RETURN_IF_ERROR(CheckManifest(manifest));
  return manifest;
}

// Says once a second, and at the end, how far a transfer is.
class ProgressLog {
 public:
  ProgressLog(absl::string_view what, uint64_t total) : what_(what), total_(total) {}

  // True: it is time to tell others, too.
  bool Add(uint64_t bytes) {
    done_ += bytes;
    const absl::Time now = Clock::Steady().Now();
    if (done_ < total_ && now - said_ < kReportInterval) return false;
    said_ = now;
    const double seconds = std::max(absl::ToDoubleSeconds(now - begin_), 1e-3);
    LogInfo(what_, ": ",
            absl::StrFormat("%.0f of %.0f MB, %.0f MB/s", static_cast<double>(done_) / kMegabyte,
                            static_cast<double>(total_) / kMegabyte,
                            static_cast<double>(done_) / kMegabyte / seconds));
    return true;
  }
  uint64_t done() const { return done_; }
  uint64_t total() const { return total_; }

 private:
  const std::string what_;
  const uint64_t total_;
  const absl::Time begin_ = Clock::Steady().Now();
  absl::Time said_ = begin_;
  uint64_t done_ = 0;
};

}  // namespace

void FetchInterrupter::Interrupt() {
  MutexLock lock(&mutex_);
  interrupted_ = true;
  if (call_ != nullptr) call_->TryCancel();
}

bool FetchInterrupter::interrupted() const {
  MutexLock lock(&mutex_);
  return interrupted_;
}

void FetchInterrupter::SetCall(grpc::ClientContext* call) {
  MutexLock lock(&mutex_);
  call_ = call;
  if (interrupted_ && call_ != nullptr) call_->TryCancel();
}

// A connection of its own: a plan must not stand behind a tensor.
ModelFetch::ModelFetch(ModelFetchOptions options)
    : options_(std::move(options)),
      stub_(v1::Cluster::NewStub(MakeBulkChannel(options_.coordinator_address, options_.credentials))) {}

absl::StatusOr<std::unique_ptr<ModelFetch>> ModelFetch::Open(ModelFetchOptions options) {
  if (options.folder.empty()) {
    return absl::InvalidArgumentError(
        "no folder for the model that the coordinator sends: HOME is not set; name one with --model-cache");
  }
  std::unique_ptr<ModelFetch> fetch(new ModelFetch(std::move(options)));
  RETURN_IF_ERROR(fetch->GetManifest());
  ASSIGN_OR_RETURN(fetch->cache_, ModelCache::Open(fetch->options_.folder, fetch->manifest_));
  fetch->checked_.resize(fetch->manifest_.chunks.size());
  RETURN_IF_ERROR(fetch->OpenHeader());
  return fetch;
}

absl::Status ModelFetch::GetManifest() {
  grpc::ClientContext context;
  context.AddMetadata(kSecretMetadata, options_.secret);
  v1::ModelManifest wire;
  options_.interrupter->SetCall(&context);
  const grpc::Status status = stub_->GetModelManifest(&context, {}, &wire);
  options_.interrupter->SetCall(nullptr);
  if (!status.ok()) {
    return absl::Status(
        static_cast<absl::StatusCode>(status.error_code()),
        absl::StrCat("coordinator ", options_.coordinator_address, ": ", status.error_message()));
  }
  ASSIGN_OR_RETURN(manifest_, FromWire(wire));
  if (ManifestDigest(manifest_) != options_.manifest_sha256 ||
      manifest_.fingerprint != options_.fingerprint) {
    return absl::DataLossError(
        "manifest of the model: not the one that the coordinator named at the welcome");
  }
  return absl::OkStatus();
}

absl::Status ModelFetch::OpenHeader() {
  const ModelChunk& last = manifest_.chunks[manifest_.header_chunks - 1];
  const ByteRange header{0, last.offset + last.size};
  RETURN_IF_ERROR(Need("model header", {&header, 1}).status());
  ASSIGN_OR_RETURN(const std::unique_ptr<GgufFile> file, OpenFile());
  const TensorInfo* tensor = file->FindTensor(kRopeDivisors);
  if (tensor == nullptr) return absl::OkStatus();
  const ByteRange divisors = RangeInFile(*file, tensor->bytes);
  return Need("model header", {&divisors, 1}).status();
}

bool ModelFetch::Turn() {
  if (options_.on_turn) options_.on_turn();
  return !options_.interrupter->interrupted();
}

absl::Status ModelFetch::Lock(absl::string_view what) {
  bool said = false;
  return cache_->Lock([&] {
    if (!std::exchange(said, true)) {
      LogInfo(what, ": waiting for another worker that uses ", options_.folder);
    }
    return Turn();
  });
}

// Under the lock: a file that another worker writes to at that moment looks as if it were not complete.
absl::StatusOr<std::unique_ptr<GgufFile>> ModelFetch::OpenFile() {
  RETURN_IF_ERROR(Lock("model header"));
  absl::StatusOr<std::unique_ptr<GgufFile>> file = GgufFile::Open(cache_->path());
  cache_->Unlock();
  return file;
}

absl::StatusOr<bool> ModelFetch::Need(absl::string_view what, absl::Span<const ByteRange> ranges) {
  const std::vector<uint32_t> chunks = ChunksOf(manifest_, ranges);
  RETURN_IF_ERROR(Lock(what));
  absl::StatusOr<std::vector<uint32_t>> missing = Missing(what, chunks);
  absl::Status status = missing.status();
  const bool some = missing.ok() && !missing->empty();
  if (some) status = FetchAll(what, *missing);
  cache_->Unlock();
  RETURN_IF_ERROR(status);
  const uint64_t fetched = BytesOf(manifest_, *missing);
  LogInfo(what, ": fetched ", fetched, " bytes in ", missing->size(), " chunks, ",
          BytesOf(manifest_, chunks) - fetched, " bytes were in ", cache_->path());
  return some;
}

// What is in the cache is compared with its hash before it is used the first time.
absl::StatusOr<std::vector<uint32_t>> ModelFetch::Missing(absl::string_view what,
                                                          absl::Span<const uint32_t> chunks) {
  std::vector<uint32_t> missing;
  for (const uint32_t chunk : chunks) {
    if (!Turn()) return absl::CancelledError("stopped");
    if (cache_->Has(chunk)) {
      if (checked_[chunk]) continue;
      ASSIGN_OR_RETURN(checked_[chunk], cache_->Check(chunk));
      if (checked_[chunk]) continue;
      LogWarning(what, ": chunk ", chunk, " (byte ", manifest_.chunks[chunk].offset, ") of ", cache_->path(),
                 " is damaged; fetching it again");
    }
    missing.push_back(chunk);
  }
  return missing;
}

absl::Status ModelFetch::FetchAll(absl::string_view what, std::vector<uint32_t> missing) {
  ProgressLog progress(what, BytesOf(manifest_, missing));
  RETURN_IF_ERROR(cache_->CheckRoom(progress.total()));
  size_t stored = 0;
  for (int attempt = 1; stored < missing.size(); ++attempt) {
    const absl::Status status = FetchSome(absl::MakeConstSpan(missing).subspan(stored), [&](uint32_t chunk) {
      attempt = 0;
      checked_[chunk] = true;
      ++stored;
      if (progress.Add(manifest_.chunks[chunk].size) && options_.on_progress) {
        options_.on_progress(progress.done(), progress.total());
      }
    });
    if (status.ok()) continue;
    if (options_.interrupter->interrupted()) return absl::CancelledError("stopped");
    const bool again = absl::IsDataLoss(status) || absl::IsUnavailable(status);
    if (!again || attempt >= kAttempts) {
      return absl::Status(status.code(), absl::StrCat(status.message(), " (", missing.size() - stored, " of ",
                                                      missing.size(), " chunks are still to come)"));
    }
    LogWarning(what, ": ", status.message(), "; fetching on from there");
  }
  return cache_->Sync();
}

// One stream. OK: all came.
absl::Status ModelFetch::FetchSome(absl::Span<const uint32_t> chunks,
                                   const std::function<void(uint32_t)>& on_stored) {
  v1::FetchModelRequest request;
  request.set_manifest_sha256(options_.manifest_sha256);
  request.mutable_chunks()->Add(chunks.begin(), chunks.end());
  grpc::ClientContext context;
  context.AddMetadata(kSecretMetadata, options_.secret);
  options_.interrupter->SetCall(&context);
  const std::unique_ptr<grpc::ClientReader<v1::ModelChunk>> reader = stub_->FetchModel(&context, request);
  v1::ModelChunk message;
  size_t next = 0;
  absl::Status status;
  while (status.ok() && reader->Read(&message)) {
    if (!Turn()) {
      status = absl::CancelledError("stopped");
    } else if (next == chunks.size() || message.chunk() != chunks[next]) {
      status = absl::DataLossError(absl::StrCat("chunk ", message.chunk(), " of the model came unasked"));
    } else {
      status = cache_->Store(chunks[next], message.data());
    }
    if (status.ok()) on_stored(chunks[next++]);
  }
  if (!status.ok()) context.TryCancel();
  const grpc::Status ended = reader->Finish();
  options_.interrupter->SetCall(nullptr);
  RETURN_IF_ERROR(status);
  if (!ended.ok()) return FromPeerStatus(ended);
  if (next < chunks.size()) return absl::UnavailableError("the coordinator ended the transfer of the model");
  return absl::OkStatus();
}

}  // namespace millrace
