// Which bytes of the model file a stage reads, and what stands in for a file that has only those of no stage
// yet.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "model/gguf_file.h"
#include "model/hyper_parameters.h"
#include "model/model_chunks.h"
#include "worker/stage/stage_layout.h"

namespace millrace {

// What a worker with that stage, cut into `shards`, reads: from the views that loading takes. Ranges may
// overlap. INVALID_ARGUMENT: as CutShards. REQUIRES: ReadHyperParameters(file) was OK, the layout lies in the
// model.
absl::StatusOr<std::vector<ByteRange>> StageByteRanges(const GgufFile& file,
                                                       const HyperParameters& hyper_parameters,
                                                       const StageLayout& layout, uint32_t shards);

// The model's header, and ordinary numbers in place of the weights of a few layers: enough to measure how
// long they take. Memory is that of those layers.
class StandInModel {
 public:
  // RESOURCE_EXHAUSTED: not enough memory. INVALID_ARGUMENT: as StageByteRanges.
  static absl::StatusOr<std::unique_ptr<StandInModel>> Create(const GgufFile& file,
                                                              const HyperParameters& hyper_parameters,
                                                              const StageLayout& layout, uint32_t shards);
  ~StandInModel();
  StandInModel(const StandInModel&) = delete;
  StandInModel& operator=(const StandInModel&) = delete;

  const GgufFile& file() const { return *file_; }

 private:
  explicit StandInModel(absl::Span<uint8_t> image) : image_(image) {}
  const absl::Span<uint8_t> image_;
  std::unique_ptr<GgufFile> file_;
};

}  // namespace millrace
