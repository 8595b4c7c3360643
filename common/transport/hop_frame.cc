#include "common/transport/hop_frame.h"

#include <bit>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "grpcpp/support/slice.h"

namespace millrace {
namespace {

static_assert(std::endian::native == std::endian::little, "frames are written as they lie in memory");

struct FrameHeader {
  char magic[4];
  uint32_t kind;
  uint64_t epoch;
  uint64_t microbatch;
  uint32_t rows;
  uint32_t num_stamps;
  uint64_t payload_bytes;
  uint8_t zero[24];
};
static_assert(sizeof(FrameHeader) == 64);
static_assert(sizeof(StageStamp) == 40);

constexpr char kMagic[4] = {'M', 'R', 'H', '1'};

grpc::Slice PayloadSlice(std::shared_ptr<PooledBuffer> payload) {
  auto* owner = new std::shared_ptr<PooledBuffer>(std::move(payload));
  return grpc::Slice((*owner)->data, (*owner)->size,
                     [](void* user) { delete static_cast<std::shared_ptr<PooledBuffer>*>(user); }, owner);
}

// Copies bytes out of the slices of a ByteBuffer one after another.
class SliceReader {
 public:
  explicit SliceReader(std::vector<grpc::Slice> slices) : slices_(std::move(slices)) {}

  // REQUIRES: `size` more bytes are there.
  void Read(void* out, size_t size) {
    auto* to = static_cast<uint8_t*>(out);
    while (size > 0) {
      const grpc::Slice& slice = slices_[slice_];
      const size_t take = std::min(size, slice.size() - offset_);
      std::memcpy(to, slice.begin() + offset_, take);
      to += take;
      size -= take;
      offset_ += take;
      if (offset_ == slice.size()) {
        ++slice_;
        offset_ = 0;
      }
    }
  }

 private:
  std::vector<grpc::Slice> slices_;
  size_t slice_ = 0;
  size_t offset_ = 0;
};

absl::Status CheckHeader(const FrameHeader& header, size_t frame_bytes, const HopLimits& limits) {
  if (std::memcmp(header.magic, kMagic, sizeof(kMagic)) != 0) {
    return absl::InvalidArgumentError("hop frame: wrong magic; is the peer another version of Millrace?");
  }
  if (header.kind != static_cast<uint32_t>(HopKind::kActivations) &&
      header.kind != static_cast<uint32_t>(HopKind::kResult)) {
    return absl::InvalidArgumentError(absl::StrCat("hop frame: unknown kind ", header.kind));
  }
  if (header.rows > limits.max_rows || header.num_stamps > limits.max_stamps ||
      header.payload_bytes > limits.max_payload_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("hop frame: ", header.rows, " rows, ", header.num_stamps,
                                                   " stamps, ", header.payload_bytes,
                                                   " payload bytes exceed the limits ", limits.max_rows, ", ",
                                                   limits.max_stamps, ", ", limits.max_payload_bytes));
  }
  const size_t expected = sizeof(header) + header.num_stamps * sizeof(StageStamp) + header.payload_bytes;
  if (expected != frame_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("hop frame: ", frame_bytes, " bytes where the header announces ", expected));
  }
  return absl::OkStatus();
}

}  // namespace

grpc::ByteBuffer EncodeHopMessage(const HopMessage& message) {
  FrameHeader header = {};
  std::memcpy(header.magic, kMagic, sizeof(kMagic));
  header.kind = static_cast<uint32_t>(message.kind);
  header.epoch = message.epoch.value();
  header.microbatch = message.microbatch.value();
  header.rows = message.rows;
  header.num_stamps = static_cast<uint32_t>(message.stamps.size());
  header.payload_bytes = message.payload == nullptr ? 0 : message.payload->size;
  const size_t stamp_bytes = message.stamps.size() * sizeof(StageStamp);
  std::vector<uint8_t> head(sizeof(header) + stamp_bytes);
  std::memcpy(head.data(), &header, sizeof(header));
  if (stamp_bytes > 0) std::memcpy(head.data() + sizeof(header), message.stamps.data(), stamp_bytes);
  std::vector<grpc::Slice> slices;
  slices.emplace_back(head.data(), head.size());
  if (header.payload_bytes > 0) slices.push_back(PayloadSlice(message.payload));
  return grpc::ByteBuffer(slices.data(), slices.size());
}

absl::StatusOr<HopMessage> DecodeHopMessage(const grpc::ByteBuffer& bytes, const HopLimits& limits,
                                            BufferPool& pool) {
  std::vector<grpc::Slice> slices;
  if (!bytes.Dump(&slices).ok() || bytes.Length() < sizeof(FrameHeader)) {
    return absl::InvalidArgumentError(
        absl::StrCat("hop frame: ", bytes.Length(), " bytes, shorter than a header"));
  }
  SliceReader reader(std::move(slices));
  FrameHeader header;
  reader.Read(&header, sizeof(header));
  RETURN_IF_ERROR(CheckHeader(header, bytes.Length(), limits));
  HopMessage message;
  message.kind = static_cast<HopKind>(header.kind);
  message.epoch = Epoch(header.epoch);
  message.microbatch = MicrobatchId(header.microbatch);
  message.rows = header.rows;
  message.stamps.resize(header.num_stamps);
  reader.Read(message.stamps.data(), header.num_stamps * sizeof(StageStamp));
  message.payload = pool.Get(header.payload_bytes);
  reader.Read(message.payload->data, header.payload_bytes);
  return message;
}

}  // namespace millrace
