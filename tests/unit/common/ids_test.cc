#include "common/ids.h"

#include <sstream>
#include <type_traits>
#include <unordered_set>

#include "absl/container/flat_hash_set.h"
#include "gtest/gtest.h"

namespace millrace {
namespace {

static_assert(!std::is_convertible_v<uint64_t, SequenceId>);
static_assert(!std::is_convertible_v<SequenceId, uint64_t>);
static_assert(!std::is_convertible_v<SequenceId, MicrobatchId>);
static_assert(!std::is_constructible_v<WorkerId, Epoch>);
static_assert(std::is_trivially_copyable_v<Epoch>);

TEST(IdTest, IsInvalidUntilGivenANumber) {
  EXPECT_FALSE(SequenceId().valid());
  EXPECT_FALSE(SequenceId(0).valid());
  EXPECT_TRUE(SequenceId(1).valid());
  EXPECT_EQ(SequenceId(17).value(), 17u);
}

TEST(IdTest, ComparesByNumber) {
  EXPECT_EQ(Epoch(3), Epoch(3));
  EXPECT_NE(Epoch(3), Epoch(4));
  EXPECT_LT(Epoch(3), Epoch(4));
  EXPECT_FALSE(Epoch(3) < Epoch(3));
}

TEST(IdTest, IsAKeyOfHashTables) {
  absl::flat_hash_set<WorkerId> absl_set;
  std::unordered_set<WorkerId> std_set;
  for (uint64_t i = 1; i <= 100; ++i) {
    absl_set.insert(WorkerId(i % 50 + 1));
    std_set.insert(WorkerId(i % 50 + 1));
  }
  EXPECT_EQ(absl_set.size(), 50u);
  EXPECT_EQ(std_set.size(), 50u);
  EXPECT_TRUE(absl_set.contains(WorkerId(50)));
  EXPECT_FALSE(std_set.count(WorkerId(51)));
}

TEST(IdTest, PrintsItsNumber) {
  std::ostringstream out;
  out << MicrobatchId(18446744073709551615u);
  EXPECT_EQ(out.str(), "18446744073709551615");
}

}  // namespace
}  // namespace millrace
