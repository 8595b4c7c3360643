#include "common/transport/hop_frame.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "grpcpp/support/slice.h"
#include "gtest/gtest.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

constexpr size_t kHeaderBytes = 64;
constexpr size_t kStampBytes = 40;
const HopLimits kLimits{/*max_rows=*/8, /*max_stamps=*/3, /*max_payload_bytes=*/256};

class HopFrameTest : public ::testing::Test {
 protected:
  HopMessage Message(size_t payload_bytes, size_t stamps, HopKind kind = HopKind::kActivations) {
    HopMessage message;
    message.kind = kind;
    message.epoch = Epoch(0x1122334455667788);
    message.microbatch = MicrobatchId(0x99aabbccddeeff01);
    message.rows = 7;
    for (size_t i = 0; i < stamps; ++i) {
      const int64_t base = static_cast<int64_t>(i) * 10 - 5;
      message.stamps.push_back({base, base + 1, base + 2, base + 3, base + 4});
    }
    message.payload = pool_.Get(payload_bytes);
    for (size_t i = 0; i < payload_bytes; ++i) message.payload->data[i] = static_cast<uint8_t>(i * 31 + 1);
    return message;
  }

  static std::string Flatten(const grpc::ByteBuffer& bytes) {
    std::vector<grpc::Slice> slices;
    EXPECT_TRUE(bytes.Dump(&slices).ok());
    std::string flat;
    for (const grpc::Slice& slice : slices)
      flat.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
    return flat;
  }
  std::string Frame(const HopMessage& message) { return Flatten(EncodeHopMessage(message)); }

  // The bytes in slices of the given sizes, over and over.
  static grpc::ByteBuffer Cut(const std::string& bytes, const std::vector<size_t>& sizes) {
    std::vector<grpc::Slice> slices;
    for (size_t at = 0, i = 0; at < bytes.size(); ++i) {
      const size_t size = std::min(sizes[i % sizes.size()], bytes.size() - at);
      slices.emplace_back(bytes.data() + at, size);
      at += size;
    }
    return grpc::ByteBuffer(slices.data(), slices.size());
  }
  absl::StatusOr<HopMessage> Decode(const std::string& bytes, std::vector<size_t> sizes = {1 << 20}) {
    return DecodeHopMessage(Cut(bytes, sizes), kLimits, pool_);
  }

  void ExpectRefused(const std::string& bytes, const std::string& why) {
    const absl::Status status = Decode(bytes).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(why));
  }
  // The frame of a sound message with four or eight bytes of its header replaced.
  template <typename T>
  std::string With(size_t offset, T value) {
    std::string bytes = Frame(Message(16, 1));
    std::memcpy(bytes.data() + offset, &value, sizeof(value));
    return bytes;
  }

  static void ExpectSame(const HopMessage& a, const HopMessage& b) {
    EXPECT_EQ(a.kind, b.kind);
    EXPECT_EQ(a.epoch, b.epoch);
    EXPECT_EQ(a.microbatch, b.microbatch);
    EXPECT_EQ(a.rows, b.rows);
    ASSERT_EQ(a.stamps.size(), b.stamps.size());
    for (size_t i = 0; i < a.stamps.size(); ++i) {
      EXPECT_EQ(a.stamps[i].received_ns, b.stamps[i].received_ns);
      EXPECT_EQ(a.stamps[i].started_ns, b.stamps[i].started_ns);
      EXPECT_EQ(a.stamps[i].ended_ns, b.stamps[i].ended_ns);
      EXPECT_EQ(a.stamps[i].sent_ns, b.stamps[i].sent_ns);
      EXPECT_EQ(a.stamps[i].cpu_ns, b.stamps[i].cpu_ns);
    }
    ASSERT_EQ(a.payload->size, b.payload->size);
    EXPECT_EQ(std::memcmp(a.payload->data, b.payload->data, a.payload->size), 0);
  }

  BufferPool pool_{4};
};

TEST_F(HopFrameTest, ComesBackAsItWas) {
  for (const HopKind kind : {HopKind::kActivations, HopKind::kResult}) {
    for (const size_t stamps : {0, 1, 3}) {
      for (const size_t payload : {0, 1, 255, 256}) {
        const HopMessage message = Message(payload, stamps, kind);
        const absl::StatusOr<HopMessage> back = Decode(Frame(message));
        ASSERT_TRUE(back.ok()) << back.status();
        ExpectSame(message, *back);
      }
    }
  }
}

TEST_F(HopFrameTest, IsLaidOutAsDocumented) {
  const std::string bytes = Frame(Message(3, 2));
  ASSERT_EQ(bytes.size(), kHeaderBytes + 2 * kStampBytes + 3);
  EXPECT_EQ(bytes.substr(0, 4), "MRH1");
  EXPECT_EQ(bytes.substr(4, 4), std::string("\1\0\0\0", 4));
  EXPECT_EQ(bytes.substr(8, 8), std::string("\x88\x77\x66\x55\x44\x33\x22\x11"));
  EXPECT_EQ(bytes.substr(24, 4), std::string("\7\0\0\0", 4));
  EXPECT_EQ(bytes.substr(28, 4), std::string("\2\0\0\0", 4));
  EXPECT_EQ(bytes.substr(32, 8), std::string("\3\0\0\0\0\0\0\0", 8));
  EXPECT_EQ(bytes.substr(40, 24), std::string(24, '\0'));
}

TEST_F(HopFrameTest, SendsThePayloadWithoutCopyingItAndKeepsItAlive) {
  HopMessage message = Message(200, 1);
  const uint8_t* data = message.payload->data;
  const std::weak_ptr<PooledBuffer> payload = message.payload;
  {
    const grpc::ByteBuffer bytes = EncodeHopMessage(message);
    message = HopMessage();
    EXPECT_FALSE(payload.expired());
    std::vector<grpc::Slice> slices;
    ASSERT_TRUE(bytes.Dump(&slices).ok());
    ASSERT_EQ(slices.size(), 2u);
    EXPECT_EQ(slices[1].begin(), data);
  }
  EXPECT_TRUE(payload.expired());
}

TEST_F(HopFrameTest, TakesAMessageWithoutAPayload) {
  HopMessage message = Message(0, 1);
  message.payload = nullptr;
  const absl::StatusOr<HopMessage> back = Decode(Frame(message));
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(back->payload->size, 0u);
}

TEST_F(HopFrameTest, IsReadFromSlicesCutAnywhere) {
  const HopMessage message = Message(40, 2);
  const std::string bytes = Frame(message);
  for (size_t cut = 1; cut < bytes.size(); ++cut) {
    const absl::StatusOr<HopMessage> back = Decode(bytes, {cut, bytes.size()});
    ASSERT_TRUE(back.ok()) << cut << ": " << back.status();
    ExpectSame(message, *back);
  }
  for (const std::vector<size_t>& sizes : {std::vector<size_t>{1}, {3}, {64, 1, 31}}) {
    const absl::StatusOr<HopMessage> back = Decode(bytes, sizes);
    ASSERT_TRUE(back.ok()) << back.status();
    ExpectSame(message, *back);
  }
}

TEST_F(HopFrameTest, RefusesTruncationAtEveryByte) {
  const std::string bytes = Frame(Message(40, 2));
  for (size_t size = 0; size < bytes.size(); ++size) {
    ASSERT_EQ(Decode(bytes.substr(0, size)).status().code(), absl::StatusCode::kInvalidArgument) << size;
  }
  ExpectRefused("", "0 bytes, shorter than a header");
  ExpectRefused(bytes.substr(0, bytes.size() - 1), "183 bytes where the header announces 184");
  ExpectRefused(bytes + "x", "185 bytes where the header announces 184");
}

TEST_F(HopFrameTest, RefusesABufferWithoutBytes) {
  EXPECT_EQ(DecodeHopMessage(grpc::ByteBuffer(), kLimits, pool_).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(HopFrameTest, RefusesWhatIsNotAFrame) {
  ExpectRefused(With<uint8_t>(3, '2'), "wrong magic");
  ExpectRefused(With<uint32_t>(4, 0), "unknown kind 0");
  ExpectRefused(With<uint32_t>(4, 3), "unknown kind 3");
}

TEST_F(HopFrameTest, RefusesWhatExceedsALimit) {
  EXPECT_TRUE(Decode(With<uint32_t>(24, kLimits.max_rows)).ok());
  ExpectRefused(With<uint32_t>(24, kLimits.max_rows + 1),
                "9 rows, 1 stamps, 16 payload bytes exceed the limits 8, 3");
  ExpectRefused(With<uint32_t>(28, kLimits.max_stamps + 1), "4 stamps");
  ExpectRefused(With<uint32_t>(28, UINT32_MAX), "4294967295 stamps");
  ExpectRefused(With<uint64_t>(32, kLimits.max_payload_bytes + 1), "257 payload bytes");
  // The sums that these make must not wrap around to the size of the frame.
  ExpectRefused(With<uint64_t>(32, UINT64_MAX), "exceed");
  ExpectRefused(With<uint64_t>(32, uint64_t{0} - 64), "exceed");
  ExpectRefused(Frame(Message(257, 1)), "257 payload bytes");
  ExpectRefused(Frame(Message(16, 4)), "4 stamps");
}

TEST_F(HopFrameTest, RefusesAnnouncementsThatDoNotFitTheBytes) {
  ExpectRefused(With<uint32_t>(28, 0), "120 bytes where the header announces 80");
  ExpectRefused(With<uint32_t>(28, 2), "120 bytes where the header announces 160");
  ExpectRefused(With<uint64_t>(32, 15), "120 bytes where the header announces 119");
  ExpectRefused(With<uint64_t>(32, 0), "120 bytes where the header announces 104");
}

TEST_F(HopFrameTest, AnswersAnyBytesWithAStatus) {
  std::mt19937 rng(17);
  const std::string sound = Frame(Message(40, 2));
  int accepted = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string bytes = sound;
    for (size_t n = 1 + rng() % 4; n > 0; --n) bytes[rng() % bytes.size()] = static_cast<char>(rng());
    if (rng() % 4 == 0) bytes.resize(rng() % (bytes.size() + 40));
    const absl::StatusOr<HopMessage> back = Decode(bytes, {1 + rng() % 50, 1 + rng() % 50});
    if (!back.ok()) {
      ASSERT_EQ(back.status().code(), absl::StatusCode::kInvalidArgument);
      continue;
    }
    ++accepted;
    ASSERT_LE(back->rows, kLimits.max_rows);
    ASSERT_LE(back->stamps.size(), kLimits.max_stamps);
    ASSERT_LE(back->payload->size, kLimits.max_payload_bytes);
    ASSERT_EQ(kHeaderBytes + back->stamps.size() * kStampBytes + back->payload->size, bytes.size());
  }
  EXPECT_GT(accepted, 100);  // mutations of stamps and payload
}

}  // namespace
}  // namespace millrace
