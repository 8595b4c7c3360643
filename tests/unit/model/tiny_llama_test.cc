#include "tests/testing/tiny_llama.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <set>

#include "model/gguf_file.h"
#include "tests/testing/encode_tensor.h"

namespace millrace {
namespace {

using testing::ElementsAre;

TEST(TinyLlamaTest, EqualOptionsGiveEqualBytes) {
  EXPECT_EQ(BuildTinyLlama({.type = TensorType::kQ4_1}), BuildTinyLlama({.type = TensorType::kQ4_1}));
  EXPECT_NE(BuildTinyLlama({.seed = 1}), BuildTinyLlama({.seed = 2}));
}

TEST(TinyLlamaTest, WeightsHaveTheWantedSpread) {
  const std::vector<uint8_t> image = BuildTinyLlama({.weight_std = 0.05f});
  const auto file = GgufFile::Parse(image, "tiny");
  ASSERT_TRUE(file.ok()) << file.status();
  const TensorInfo* tensor = (*file)->FindTensor("token_embd.weight");
  std::vector<float> values(tensor->bytes.size() / sizeof(float));
  std::memcpy(values.data(), tensor->bytes.data(), tensor->bytes.size());
  double sum = 0;
  double squares = 0;
  for (const float value : values) {
    ASSERT_TRUE(std::isfinite(value));
    sum += value;
    squares += double{value} * value;
  }
  EXPECT_NEAR(sum / values.size(), 0.0, 0.002);
  EXPECT_NEAR(std::sqrt(squares / values.size()), 0.05, 0.002);
}

TEST(TinyLlamaTest, HasAByteLevelVocabulary) {
  const std::vector<uint8_t> image = BuildTinyLlama({});
  const auto file = GgufFile::Parse(image, "tiny");
  ASSERT_TRUE(file.ok()) << file.status();
  const auto tokens = (*file)->GetStrings("tokenizer.ggml.tokens");
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  ASSERT_EQ(tokens->size(), 320u);
  EXPECT_EQ((*tokens)[kTinyEndOfText], "<|endoftext|>");
  EXPECT_EQ((*tokens)[kTinyImStart], "<|im_start|>");
  EXPECT_EQ((*tokens)[kTinyImEnd], "<|im_end|>");
  EXPECT_EQ((*tokens)[kTinyFirstByteToken], "\u0100");
  EXPECT_EQ((*tokens)[kTinyFirstByteToken + 'A'], "A");
  EXPECT_EQ((*tokens)[kTinyFirstByteToken + ' '], "\u0120");
  EXPECT_EQ((*tokens)[kTinyFirstByteToken + 0xad], "\u0143");
  EXPECT_EQ((*tokens)[kTinyFirstByteToken + 0xff], "\u00ff");
  const std::set<absl::string_view> distinct(tokens->begin(), tokens->end());
  EXPECT_EQ(distinct.size(), tokens->size());
  const auto merges = (*file)->GetStrings("tokenizer.ggml.merges");
  ASSERT_TRUE(merges.ok()) << merges.status();
  for (const absl::string_view merge : *merges) {
    const size_t gap = merge.find(' ');
    ASSERT_NE(gap, absl::string_view::npos);
    const std::string left(merge.substr(0, gap));
    const std::string right(merge.substr(gap + 1));
    for (const std::string& token : {left, right, left + right}) {
      EXPECT_EQ(distinct.count(token), 1u) << token << " of merge " << merge;
    }
  }
}

// Blocks worked out by hand from the format's formulas.
TEST(EncodeTensorTest, GivesTheBytesOfTheFormat) {
  EXPECT_THAT(EncodeTensor(TensorType::kF32, {1.0f}), ElementsAre(0, 0, 0x80, 0x3f));
  EXPECT_THAT(EncodeTensor(TensorType::kBF16, {1.0f, -2.0f}), ElementsAre(0x80, 0x3f, 0x00, 0xc0));
  // Halves: 1, -2, the least subnormal, a tie that goes to even, the largest subnormal + half a step.
  EXPECT_THAT(EncodeTensor(TensorType::kF16, {1.0f, -2.0f, 0x1p-24f, 1.0f + 0x1p-11f, 0x1p-14f - 0x1p-25f}),
              ElementsAre(0x00, 0x3c, 0x00, 0xc0, 0x01, 0x00, 0x00, 0x3c, 0x00, 0x04));
}

TEST(EncodeTensorTest, QuantisesARamp) {
  std::vector<float> ramp(32);
  for (int i = 0; i < 32; ++i) ramp[i] = static_cast<float>(i - 16);
  const std::vector<uint8_t> q8 = EncodeTensor(TensorType::kQ8_0, ramp);
  ASSERT_EQ(q8.size(), 34u);
  EXPECT_EQ(static_cast<int8_t>(q8[2]), -127);
  EXPECT_EQ(static_cast<int8_t>(q8[2 + 16]), 0);
  const std::vector<uint8_t> q4 = EncodeTensor(TensorType::kQ4_0, ramp);
  ASSERT_EQ(q4.size(), 18u);
  EXPECT_EQ(q4[1], 0x40);   // scale 2
  EXPECT_EQ(q4[2], 0x80);   // -16 is 0, 0 is 8
  EXPECT_EQ(q4[17], 0xf8);  // -1 is 7.5, to even 8; 15 is 15.5, clamped
  const std::vector<uint8_t> q41 = EncodeTensor(TensorType::kQ4_1, ramp);
  ASSERT_EQ(q41.size(), 20u);
  EXPECT_EQ(q41[3], 0xcc);      // minimum -16
  EXPECT_EQ(q41[4] & 15, 0);    // the minimum itself
  EXPECT_EQ(q41[19] >> 4, 15);  // the maximum
}

TEST(EncodeTensorTest, QuantisesARampToFiveBits) {
  std::vector<float> ramp(32);
  for (int i = 0; i < 32; ++i) ramp[i] = static_cast<float>(i - 16);
  const std::vector<uint8_t> q5 = EncodeTensor(TensorType::kQ5_0, ramp);
  ASSERT_EQ(q5.size(), 22u);
  EXPECT_EQ(q5[1], 0x3c);  // scale 1, so that element i has quant i
  EXPECT_THAT(std::vector<uint8_t>(q5.begin() + 2, q5.begin() + 8),
              ElementsAre(0, 0, 0xff, 0xff, 0x00, 0x11));
}

// Sub-block s steps by s + 1 (times 2^-4) from -(s + 1) (times 2^-3): all values can be kept exactly, and
// scales and minima are odd numbers and not, on both sides of the fourth bit.
TEST(EncodeTensorTest, QuantisesSuperBlocks) {
  std::vector<float> values(256);
  for (int i = 0; i < 256; ++i) {
    const int s = i / 32;
    values[i] = static_cast<float>((s + 1) * 7 * (i % 16)) / 16 - static_cast<float>((s + 1) * 7) / 8;
  }
  // The largest scale and minimum are 63 only where the eighth sub-block's are, which makes d 1/9 * 8.
  const std::vector<uint8_t> q4 = EncodeTensor(TensorType::kQ4_K, values);
  ASSERT_EQ(q4.size(), 144u);
  EXPECT_EQ(q4[4] & 63, 8);                        // 63 / 8 of the first sub-block's scale, rounded
  EXPECT_EQ(q4[5] & 63, 16);                       // the second's
  EXPECT_EQ((q4[15] & 15) | q4[7] >> 6 << 4, 63);  // the eighth's
  EXPECT_EQ(q4[15] >> 4 | q4[11] >> 6 << 4, 63);   // and its minimum
  EXPECT_EQ(q4[16 + 96 + 5] >> 4, 5);              // its elements number themselves
  EXPECT_EQ(q4[16 + 96 + 31] >> 4, 15);
  const std::vector<uint8_t> q5 = EncodeTensor(TensorType::kQ5_K, values);
  ASSERT_EQ(q5.size(), 176u);
  EXPECT_EQ(q5[16 + 15] >> 7, 1);  // 15 of 15 is 31 of 31
  EXPECT_EQ(q5[16] >> 7, 0);
}

TEST(EncodeTensorTest, QuantisesToSixBits) {
  std::vector<float> values(256);
  for (int i = 0; i < 256; ++i) values[i] = static_cast<float>((i / 16 + 1) * (i % 16 * 4 - 31));
  const std::vector<uint8_t> q6 = EncodeTensor(TensorType::kQ6_K, values);
  ASSERT_EQ(q6.size(), 210u);
  EXPECT_EQ(q6[192 + 15], 127);
  EXPECT_EQ(q6[192], 8);  // 127 / 16
  // Elements 240 and 255 have quants 1 and 61 of 0 .. 63: nibble 1 and 13, high bits 0 and 3.
  EXPECT_EQ(q6[64 + 48] >> 4, 1);
  EXPECT_EQ(q6[64 + 63] >> 4, 13);
  EXPECT_EQ(q6[128 + 32 + 16] >> 6, 0);
  EXPECT_EQ(q6[128 + 32 + 31] >> 6, 3);
}

}  // namespace
}  // namespace millrace
