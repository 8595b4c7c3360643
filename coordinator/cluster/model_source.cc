#include "coordinator/cluster/model_source.h"

#include <algorithm>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/options.h"
#include "common/status_macros.h"
#include "common/transport/channels.h"
#include "common/transport/hop_link.h"
#include "common/transport/secret.h"

namespace millrace {
namespace {

// Each has one chunk of at most kMaxChunkBytes on its way.
constexpr int kMaxTransfers = 256;
constexpr unsigned kMaxHashThreads = 8;

int HashThreads() {
  return static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1u, kMaxHashThreads));
}

absl::Status NotSent() {
  return absl::FailedPreconditionError(
      "this coordinator does not send its model; start it with --push-model");
}

class RefusedTransfer final : public grpc::ServerWriteReactor<v1::ModelChunk> {
 public:
  explicit RefusedTransfer(const absl::Status& why) { Finish(ToPeerStatus(why)); }
  void OnDone() override { delete this; }
};

absl::Status CheckSecret(const grpc::CallbackServerContext& context, const std::string& secret) {
  const auto it = context.client_metadata().find(kSecretMetadata);
  const absl::string_view said = it == context.client_metadata().end()
                                     ? absl::string_view()
                                     : absl::string_view(it->second.data(), it->second.size());
  return SecretsEqual(said, secret) ? absl::OkStatus() : absl::PermissionDeniedError("wrong join secret");
}

}  // namespace

// One write is outstanding at a time: the worker's reading sets the pace.
class ModelSource::Transfer final : public grpc::ServerWriteReactor<v1::ModelChunk> {
 public:
  Transfer(ModelSource* source, std::string peer, const v1::FetchModelRequest& request)
      : source_(source), peer_(std::move(peer)), chunks_(request.chunks().begin(), request.chunks().end()) {
    WriteNext();
  }

  void OnWriteDone(bool ok) override {
    if (!ok) return Finish(grpc::Status::CANCELLED);
    sent_ += message_.data().size();
    ++next_;
    WriteNext();
  }

  void OnDone() override {
    LogInfo("sent ", sent_, " bytes of the model to ", peer_, " in ",
            absl::FormatDuration(absl::Trunc(Clock::Steady().Now() - begin_, absl::Milliseconds(1))),
            next_ == chunks_.size() ? "" : "; it left before the rest");
    --source_->transfers_;
    delete this;
  }

 private:
  void WriteNext() {
    if (next_ == chunks_.size()) return Finish(grpc::Status::OK);
    const ModelChunk& chunk = source_->manifest_.chunks[chunks_[next_]];
    message_.set_chunk(chunks_[next_]);
    message_.set_data(source_->file_.bytes().data() + chunk.offset, chunk.size);
    StartWrite(&message_);
  }

  ModelSource* const source_;
  const std::string peer_;
  const std::vector<uint32_t> chunks_;
  const absl::Time begin_ = Clock::Steady().Now();
  size_t next_ = 0;
  uint64_t sent_ = 0;
  v1::ModelChunk message_;
};

absl::StatusOr<std::unique_ptr<ModelSource>> ModelSource::Create(
    const GgufFile& file, std::string secret, const std::function<bool(uint64_t hashed)>& on_turn) {
  ASSIGN_OR_RETURN(ModelManifest manifest, MakeManifest(file, HashThreads(), on_turn));
  return std::unique_ptr<ModelSource>(new ModelSource(file, std::move(secret), std::move(manifest)));
}

ModelSource::ModelSource(const GgufFile& file, std::string secret, ModelManifest manifest)
    : file_(file),
      secret_(std::move(secret)),
      manifest_(std::move(manifest)),
      digest_(ManifestDigest(manifest_)) {}

grpc::ServerUnaryReactor* ModelSource::SendManifest(grpc::CallbackServerContext* context,
                                                    v1::ModelManifest* answer) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const absl::Status allowed = CheckSecret(*context, secret_);
  if (allowed.ok()) {
    answer->set_model_fingerprint(manifest_.fingerprint);
    answer->set_file_bytes(manifest_.file_bytes);
    answer->set_header_chunks(manifest_.header_chunks);
    for (const ModelChunk& chunk : manifest_.chunks) {
      answer->add_offsets(chunk.offset);
      answer->add_sizes(chunk.size);
      answer->mutable_sha256()->append(reinterpret_cast<const char*>(chunk.sha256.data()),
                                       chunk.sha256.size());
    }
  }
  reactor->Finish(ToPeerStatus(allowed));
  return reactor;
}

absl::Status ModelSource::Check(const grpc::CallbackServerContext& context,
                                const v1::FetchModelRequest& request) const {
  const absl::Status allowed = CheckSecret(context, secret_);
  if (!allowed.ok()) return allowed;
  if (request.manifest_sha256() != digest_) {
    return absl::FailedPreconditionError("this coordinator has another model than the request names");
  }
  int64_t last = -1;
  for (const uint32_t chunk : request.chunks()) {
    if (chunk <= last || chunk >= manifest_.chunks.size()) {
      return absl::InvalidArgumentError(absl::StrCat("chunk ", chunk, " after ", last, ": there are ",
                                                     manifest_.chunks.size(), ", asked for in rising order"));
    }
    last = chunk;
  }
  return absl::OkStatus();
}

grpc::ServerWriteReactor<v1::ModelChunk>* ModelSource::SendChunks(grpc::CallbackServerContext* context,
                                                                  const v1::FetchModelRequest& request) {
  const absl::Status status = Check(*context, request);
  if (!status.ok()) return new RefusedTransfer(status);
  if (++transfers_ > kMaxTransfers) {
    --transfers_;
    return new RefusedTransfer(absl::ResourceExhaustedError(
        absl::StrCat(kMaxTransfers, " transfers of the model are under way; ask again later")));
  }
  return new Transfer(this, context->peer(), request);
}

grpc::ServerUnaryReactor* RefuseManifest(grpc::CallbackServerContext* context) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToPeerStatus(NotSent()));
  return reactor;
}

grpc::ServerWriteReactor<v1::ModelChunk>* RefuseChunks() {
  return new RefusedTransfer(NotSent());
}

}  // namespace millrace
