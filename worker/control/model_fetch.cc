#include "worker/control/model_fetch.h"

#include <algorithm>
#include <chrono>
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
constexpr std::chrono::milliseconds kPoll{100};
constexpr absl::Duration kReportInterval = absl::Seconds(1);
// What is written goes to the disk in pieces of this size: all at once could take minutes.
constexpr uint64_t kSyncBytes = uint64_t{256} << 20;
// Above a manifest of kMaxModelChunks.
constexpr int kLargestMessage = 256 << 20;
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

}  // namespace

// Says once a second, and if wanted at the end, how far something is.
class ModelFetch::ProgressLog {
 public:
  ProgressLog(std::string begin, uint64_t total, bool says_end)
      : text_(std::move(begin)), total_(total), says_end_(says_end) {}

  // True: it is time to tell others, too.
  bool Add(uint64_t bytes) {
    done_ += bytes;
    const absl::Time now = Clock::Steady().Now();
    if ((done_ < total_ || !says_end_) && now - said_ < kReportInterval) return false;
    said_ = now;
    const double seconds = std::max(absl::ToDoubleSeconds(now - begin_), 1e-3);
    LogInfo(text_, absl::StrFormat("%.0f of %.0f MB, %.0f MB/s", static_cast<double>(done_) / kMegabyte,
                                   static_cast<double>(total_) / kMegabyte,
                                   static_cast<double>(done_) / kMegabyte / seconds));
    return true;
  }
  uint64_t done() const { return done_; }
  uint64_t total() const { return total_; }

 private:
  const std::string text_;
  const uint64_t total_;
  const bool says_end_;
  const absl::Time begin_ = Clock::Steady().Now();
  absl::Time said_ = begin_;
  uint64_t done_ = 0;
};

struct ModelFetch::Call {
  explicit Call(const std::string& secret) {
    context.AddMetadata(kSecretMetadata, secret);
    context.set_wait_for_ready(true);
  }
  grpc::ClientContext context;
  grpc::CompletionQueue queue;  // of one event at a time
  bool silent = false;
};

// A connection of its own: a plan must not stand behind a tensor.
ModelFetch::ModelFetch(ModelFetchOptions options)
    : options_(std::move(options)),
      stub_(v1::Cluster::NewStub(
          MakeBulkChannel(options_.coordinator_address, options_.credentials, kLargestMessage))) {}

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

// Waits for the call's next event, and breaks the call off when it is to stop or when nothing comes. True:
// the event is one of success. Nothing here waits for another process without turns: its health is not ours.
bool ModelFetch::Await(Call& call) {
  const absl::Time give_up = Clock::Steady().Now() + options_.silence;
  void* tag = nullptr;
  bool ok = false;
  while (call.queue.AsyncNext(&tag, &ok, std::chrono::system_clock::now() + kPoll) ==
         grpc::CompletionQueue::TIMEOUT) {
    if (Clock::Steady().Now() >= give_up) call.silent = true;
    if (!Turn() || call.silent) call.context.TryCancel();
  }
  return ok;
}

absl::Status ModelFetch::EndOf(const Call& call, const grpc::Status& ended) const {
  if (options_.interrupter->interrupted()) return absl::CancelledError("stopped");
  const std::string who = absl::StrCat("coordinator ", options_.coordinator_address, ": ");
  if (call.silent) {
    return absl::UnavailableError(
        absl::StrCat(who, "nothing of the model came for ", absl::FormatDuration(options_.silence)));
  }
  const absl::Status status = FromPeerStatus(ended);
  return status.ok() ? status : absl::Status(status.code(), absl::StrCat(who, status.message()));
}

absl::Status ModelFetch::GetManifest() {
  v1::ModelManifest wire;
  absl::Status status;
  for (int attempt = 1; attempt <= kAttempts; ++attempt) {
    Call call(options_.secret);
    grpc::Status ended;
    stub_->AsyncGetModelManifest(&call.context, {}, &call.queue)->Finish(&wire, &ended, nullptr);
    Await(call);
    status = EndOf(call, ended);
    if (!absl::IsUnavailable(status)) break;
    LogWarning("model manifest: ", status.message());
  }
  RETURN_IF_ERROR(status);
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
  header_.push_back(header);
  RETURN_IF_ERROR(Need("model header", header_).status());
  ASSIGN_OR_RETURN(const std::unique_ptr<GgufFile> file, OpenFile());
  const TensorInfo* tensor = file->FindTensor(kRopeDivisors);
  if (tensor == nullptr) return absl::OkStatus();
  header_.push_back(RangeInFile(*file, tensor->bytes));
  return Need("model header", {&header_.back(), 1}).status();
}

void ModelFetch::Tell(ProgressLog& progress, uint32_t chunk) {
  if (!progress.Add(manifest_.chunks[chunk].size) || !options_.on_progress) return;
  options_.on_progress(progress.done(), progress.total());
}

bool ModelFetch::Turn() {
  if (options_.on_turn) options_.on_turn();
  return !options_.interrupter->interrupted();
}

absl::Status ModelFetch::Lock(absl::string_view what) {
  bool said = false;
  RETURN_IF_ERROR(cache_->Lock([&] {
    if (!std::exchange(said, true)) {
      LogInfo(what, ": waiting for another worker that uses ", options_.folder);
    }
    return Turn();
  }));
  if (generation_ == cache_->generation()) return absl::OkStatus();
  generation_ = cache_->generation();
  LogWarning(what, ": ", cache_->path(), " was removed; beginning anew");
  checked_.assign(checked_.size(), false);
  return absl::OkStatus();
}

// Under the lock: a file that another worker writes to at that moment looks as if it were not complete.
absl::StatusOr<std::unique_ptr<GgufFile>> ModelFetch::OpenFile() {
  RETURN_IF_ERROR(Lock("model header"));
  absl::StatusOr<std::unique_ptr<GgufFile>> file = GgufFile::Open(cache_->path());
  mapped_generation_ = generation_;
  cache_->Unlock();
  return file;
}

absl::StatusOr<bool> ModelFetch::Need(absl::string_view what, absl::Span<const ByteRange> ranges) {
  RETURN_IF_ERROR(Lock(what));
  std::vector<ByteRange> wanted(ranges.begin(), ranges.end());
  if (generation_ != mapped_generation_) wanted.insert(wanted.end(), header_.begin(), header_.end());
  const std::vector<uint32_t> chunks = ChunksOf(manifest_, wanted);
  absl::StatusOr<std::vector<uint32_t>> missing = Missing(what, chunks);
  absl::Status status = missing.status();
  if (missing.ok() && !missing->empty()) status = FetchAll(what, *missing);
  cache_->Unlock();
  RETURN_IF_ERROR(status);
  const uint64_t fetched = BytesOf(manifest_, *missing);
  LogInfo(what, ": fetched ", fetched, " bytes in ", missing->size(), " chunks, ",
          BytesOf(manifest_, chunks) - fetched, " bytes were in ", cache_->path());
  return !missing->empty() || generation_ != mapped_generation_;
}

// What is in the cache is compared with its hash before it is used the first time.
absl::StatusOr<std::vector<uint32_t>> ModelFetch::Missing(absl::string_view what,
                                                          absl::Span<const uint32_t> chunks) {
  std::vector<uint32_t> missing;
  std::vector<uint32_t> unchecked;
  for (const uint32_t chunk : chunks) {
    if (!cache_->Has(chunk)) missing.push_back(chunk);
    if (cache_->Has(chunk) && !checked_[chunk]) unchecked.push_back(chunk);
  }
  ProgressLog progress(absl::StrCat(what, ": checked "), BytesOf(manifest_, unchecked), /*says_end=*/false);
  const size_t absent = missing.size();
  for (const uint32_t chunk : unchecked) {
    if (!Turn()) return absl::CancelledError("stopped");
    ASSIGN_OR_RETURN(checked_[chunk], cache_->Check(chunk));
    if (!checked_[chunk]) missing.push_back(chunk);
    Tell(progress, chunk);
  }
  if (const size_t damaged = missing.size() - absent; damaged != 0) {
    LogWarning(what, ": ", cache_->path(), " is damaged in ", damaged, " of ", unchecked.size(),
               " chunks, first at byte ", manifest_.chunks[missing[absent]].offset, "; fetching them again");
  }
  std::sort(missing.begin(), missing.end());
  return missing;
}

absl::Status ModelFetch::FetchAll(absl::string_view what, const std::vector<uint32_t>& missing) {
  ProgressLog progress(absl::StrCat(what, ": "), BytesOf(manifest_, missing), /*says_end=*/true);
  RETURN_IF_ERROR(cache_->CheckRoom(progress.total()));
  size_t stored = 0;
  uint64_t unsynced = 0;
  for (int attempt = 1; stored < missing.size(); ++attempt) {
    const auto on_stored = [&](uint32_t chunk) -> absl::Status {
      attempt = 0;
      checked_[chunk] = true;
      ++stored;
      Tell(progress, chunk);
      unsynced += manifest_.chunks[chunk].size;
      if (unsynced < kSyncBytes) return absl::OkStatus();
      unsynced = 0;
      return cache_->Sync();
    };
    const absl::Status status = FetchSome(absl::MakeConstSpan(missing).subspan(stored), on_stored);
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
                                   const std::function<absl::Status(uint32_t)>& on_stored) {
  v1::FetchModelRequest request;
  request.set_manifest_sha256(options_.manifest_sha256);
  request.mutable_chunks()->Add(chunks.begin(), chunks.end());
  Call call(options_.secret);
  const std::unique_ptr<grpc::ClientAsyncReader<v1::ModelChunk>> reader =
      stub_->AsyncFetchModel(&call.context, request, &call.queue, nullptr);
  v1::ModelChunk message;
  size_t next = 0;
  absl::Status status;
  bool more = Await(call);
  while (more && status.ok()) {
    reader->Read(&message, nullptr);
    more = Await(call);
    if (!more) break;
    if (!Turn()) {
      status = absl::CancelledError("stopped");
    } else if (next == chunks.size() || message.chunk() != chunks[next]) {
      status = absl::DataLossError(absl::StrCat("chunk ", message.chunk(), " of the model came unasked"));
    } else {
      status = cache_->Store(chunks[next], message.data());
    }
    if (status.ok()) status = on_stored(chunks[next++]);
  }
  if (!status.ok()) call.context.TryCancel();
  grpc::Status ended;
  reader->Finish(&ended, nullptr);
  Await(call);
  RETURN_IF_ERROR(status);
  RETURN_IF_ERROR(EndOf(call, ended));
  if (next < chunks.size()) return absl::UnavailableError("the coordinator ended the transfer of the model");
  return absl::OkStatus();
}

}  // namespace millrace
