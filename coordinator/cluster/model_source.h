// Sends the coordinator's model file to workers that lack it.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "grpcpp/grpcpp.h"
#include "millrace/v1/cluster.grpc.pb.h"
#include "model/gguf_file.h"
#include "model/model_chunks.h"

namespace millrace {

// Thread: any, once made. Outlives the server that serves it.
class ModelSource {
 public:
  // Reads and hashes the whole file, which outlives this and must not change. `secret`: what callers must
  // know. `on_turn`: as MakeManifest's. CANCELLED: it returned false.
  static absl::StatusOr<std::unique_ptr<ModelSource>> Create(
      const GgufFile& file, std::string secret, const std::function<bool(uint64_t hashed)>& on_turn);

  // Whoever knows it can check everything that this sends.
  const std::string& manifest_sha256() const { return digest_; }

  // Cluster.GetModelManifest and Cluster.FetchModel; the proto says what they answer.
  grpc::ServerUnaryReactor* SendManifest(grpc::CallbackServerContext* context, v1::ModelManifest* answer);
  grpc::ServerWriteReactor<v1::ModelChunk>* SendChunks(grpc::CallbackServerContext* context,
                                                       const v1::FetchModelRequest& request);

 private:
  class Transfer;
  ModelSource(const GgufFile& file, std::string secret, ModelManifest manifest);
  absl::Status Check(const grpc::CallbackServerContext& context, const v1::FetchModelRequest& request) const;

  const GgufFile& file_;
  const std::string secret_;
  const ModelManifest manifest_;
  const std::string digest_;
  std::atomic<int> transfers_{0};
};

// What callers hear of a coordinator that does not send its model.
grpc::ServerUnaryReactor* RefuseManifest(grpc::CallbackServerContext* context);
grpc::ServerWriteReactor<v1::ModelChunk>* RefuseChunks();

}  // namespace millrace
