#include "worker/device/cpu/host_memory.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

TEST(HostMemoryTest, IsAlignedZeroAndWritable) {
  for (uint64_t bytes : {uint64_t{1}, uint64_t{4096}, (uint64_t{2} << 20) + 1, uint64_t{5} << 20}) {
    auto memory = HostMemory::Allocate("test", bytes);
    ASSERT_TRUE(memory.ok()) << memory.status();
    EXPECT_EQ(reinterpret_cast<uintptr_t>(memory->data()) % (2 << 20), 0u);
    EXPECT_EQ(memory->bytes(), bytes);
    EXPECT_TRUE(std::all_of(memory->data(), memory->data() + bytes, [](uint8_t byte) { return byte == 0; }));
    std::fill_n(memory->data(), bytes, 0xff);
  }
}

TEST(HostMemoryTest, NoBytesAreNoMemory) {
  const auto memory = HostMemory::Allocate("test", 0);
  ASSERT_TRUE(memory.ok());
  EXPECT_EQ(memory->data(), nullptr);
}

TEST(HostMemoryTest, RefusesMoreThanIsFree) {
  for (uint64_t bytes : {uint64_t{1} << 50, std::numeric_limits<uint64_t>::max()}) {
    const absl::Status status = HostMemory::Allocate("packed weights", bytes).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(status.message()), HasSubstr("packed weights"));
  }
}

TEST(HostMemoryTest, MovesTheMemoryNotTheBytes) {
  auto memory = HostMemory::Allocate("test", 100);
  ASSERT_TRUE(memory.ok());
  memory->data()[99] = 7;
  const uint8_t* const data = memory->data();
  HostMemory moved = *std::move(memory);
  EXPECT_EQ(moved.data(), data);
  moved = HostMemory();
  EXPECT_EQ(moved.data(), nullptr);
}

}  // namespace
}  // namespace millrace
