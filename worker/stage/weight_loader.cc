#include "worker/stage/weight_loader.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/options.h"
#include "common/process.h"
#include "common/status_macros.h"

namespace millrace {
namespace {

constexpr uint64_t kReportBytes = uint64_t{16} << 20;
constexpr uint64_t kPackedAlignment = 4096;

uint64_t RoundUp(uint64_t bytes) {
  return (bytes + kPackedAlignment - 1) / kPackedAlignment * kPackedAlignment;
}

// Whether `inner` is some of the rows of `outer`.
bool LiesIn(const kernels::WeightMatrix& inner, const kernels::WeightMatrix& outer) {
  return inner.data >= outer.data && inner.data < outer.data + outer.rows * outer.row_bytes;
}

}  // namespace

WeightLoader::WeightLoader(const GgufFile& file, std::vector<ShardToLoad> shards,
                           std::function<void(uint64_t, uint64_t)> progress)
    : file_(file), shards_(std::move(shards)), progress_(std::move(progress)), items_(shards_.size()) {
  for (size_t i = 0; i < shards_.size(); ++i) ListItems(i);
}

void WeightLoader::ListItems(size_t index) {
  const ShardToLoad& shard = shards_[index];
  uint64_t offset = 0;
  uint64_t& mapped = *shard.mapped_bytes;
  mapped = 0;
  kernels::WeightMatrix& embedding = shard.weights->token_embedding;
  for (kernels::WeightMatrix* matrix : shard.weights->Matrices()) {
    const uint64_t bytes = shard.device->ops().PackedBytes(*matrix);
    // A tied matrix is there once, as the embedding, if nobody packs it.
    if (bytes == 0 && embedding.rows != 0 && LiesIn(*matrix, embedding)) continue;
    items_[index].push_back({matrix, bytes, offset});
    offset += RoundUp(bytes);
    if (bytes == 0) mapped += FileBytes(*matrix);
    total_ += FileBytes(*matrix);
  }
  if (index != 0) return;
  // What shards share counts as the first one's.
  if (embedding.rows != 0) {
    items_[0].push_back({&embedding, 0, 0});
    mapped += FileBytes(embedding);
    total_ += FileBytes(embedding);
  }
  mapped += shard.weights->copied_bytes();
  total_ += shard.weights->copied_bytes();
}

absl::Status WeightLoader::Allocate() {
  uint64_t all = 0;
  std::vector<uint64_t> bytes(shards_.size(), 0);
  for (size_t i = 0; i < shards_.size(); ++i) {
    for (const Item& item : items_[i]) bytes[i] += RoundUp(item.packed_bytes);
    all += bytes[i];
  }
  const bool on_host = shards_.front().device->on_host();
  const uint64_t available = AvailableMemoryBytes();
  if (on_host && available != 0 && all > available) {
    return absl::ResourceExhaustedError(absl::StrCat("the weights of this stage take ", FormatBytes(all),
                                                     ", of which ", FormatBytes(available), " are free"));
  }
  for (size_t i = 0; i < shards_.size(); ++i) {
    if (bytes[i] == 0) continue;
    ASSIGN_OR_RETURN(*shards_[i].packed, shards_[i].device->Allocate("packed weights", bytes[i]));
  }
  for (const std::vector<Item>& items : items_) {
    for (const Item& item : items) {
      if (item.packed_bytes != 0) packed_views_.push_back(*item.matrix);
    }
  }
  return absl::OkStatus();
}

absl::Status WeightLoader::Load(size_t index) {
  const ShardToLoad& shard = shards_[index];
  for (const Item& item : items_[index]) {
    const uint64_t bytes = FileBytes(*item.matrix);
    PageIn(*item.matrix);
    if (item.packed_bytes != 0) {
      *item.matrix = shard.device->ops().Pack(*item.matrix, shard.packed->data() + item.offset);
    }
    Done(index, bytes);
  }
  return shard.device->Finish();
}

void WeightLoader::Done(size_t shard, uint64_t bytes) {
  const uint64_t done = done_.fetch_add(bytes, std::memory_order_relaxed) + bytes;
  if (shard != 0 || !progress_ || done - reported_ < kReportBytes || done >= total_) return;
  progress_(reported_ = done, total_);
}

void WeightLoader::Finish() {
  const kernels::WeightMatrix& embedding = shards_.front().weights->token_embedding;
  for (const kernels::WeightMatrix& view : packed_views_) {
    if (embedding.rows == 0 || !LiesIn(view, embedding)) file_.Release(FileView(view));
  }
  if (progress_) progress_(total_, total_);
}

}  // namespace millrace
