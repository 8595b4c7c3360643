#include "worker/stage/stage_bytes.h"

#include <sys/mman.h>

#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/options.h"
#include "common/status_macros.h"
#include "worker/stage/shard_layout.h"
#include "worker/stage/stage_weights.h"

namespace millrace {
namespace {

// Repeated, it makes numbers near 1 or scales near 0.01: products of them stay far from those that processors
// are slow with.
int OrdinaryByte(const GgufFile& file, const ByteRange& range) {
  const uint8_t* first = file.bytes().data() + range.offset;
  for (const TensorInfo& tensor : file.tensors()) {
    if (first < tensor.bytes.data() || first >= tensor.bytes.data() + tensor.bytes.size()) continue;
    return tensor.type == TensorType::kF32 || tensor.type == TensorType::kBF16 ? 0x3f : 0x21;
  }
  return 0x21;
}

}  // namespace

absl::StatusOr<std::vector<ByteRange>> StageByteRanges(const GgufFile& file,
                                                       const HyperParameters& hyper_parameters,
                                                       const StageLayout& layout, uint32_t shards) {
  ASSIGN_OR_RETURN(const ShardLayout cut, CutShards(ReadShardShape(file, hyper_parameters), shards));
  std::vector<ByteRange> ranges;
  for (const ShardSlice& slice : cut.shards) {
    StageWeights weights = ViewStageWeights(file, hyper_parameters, layout, slice);
    for (const absl::Span<const uint8_t> view : weights.FileViews()) {
      ranges.push_back(RangeInFile(file, view));
    }
  }
  return ranges;
}

absl::StatusOr<std::unique_ptr<StandInModel>> StandInModel::Create(const GgufFile& file,
                                                                   const HyperParameters& hyper_parameters,
                                                                   const StageLayout& layout,
                                                                   uint32_t shards) {
  ASSIGN_OR_RETURN(const std::vector<ByteRange> ranges,
                   StageByteRanges(file, hyper_parameters, layout, shards));
  void* const memory = mmap(nullptr, file.size_bytes(), PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    return absl::ResourceExhaustedError(absl::StrCat("no address space of ", FormatBytes(file.size_bytes()),
                                                     " to measure in; --profile off does without"));
  }
  std::unique_ptr<StandInModel> model(
      new StandInModel({static_cast<uint8_t*>(memory), static_cast<size_t>(file.size_bytes())}));
  std::memcpy(memory, file.bytes().data(), file.header_bytes());
  // Memory that nobody wrote to would be one page of zeros, and faster than any real one.
  for (const ByteRange& range : ranges) {
    std::memset(model->image_.data() + range.offset, OrdinaryByte(file, range), range.size);
  }
  ASSIGN_OR_RETURN(model->file_, GgufFile::Parse(model->image_, file.path()));
  return model;
}

StandInModel::~StandInModel() {
  file_.reset();
  munmap(image_.data(), image_.size());
}

}  // namespace millrace
