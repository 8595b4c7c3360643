// Files that are broken, by accident or on purpose: each gives one line that says what is wrong.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <random>

#include "absl/strings/str_cat.h"
#include "model/gguf_file.h"
#include "model/gguf_parser.h"
#include "model/hyper_parameters.h"
#include "tests/testing/gguf_builder.h"
#include "tests/testing/tiny_llama.h"
#include "tests/unit/model/guarded_bytes.h"

namespace millrace {
namespace {

using testing::HasSubstr;
using testing::Not;

// A whole model in about 3 KB: what matters here is its header.
GgufBuilder SmallestModel() {
  GgufBuilder builder = TinyLlamaBuilder(
      {.layers = 1, .hidden = 4, .ffn = 6, .heads = 2, .kv_heads = 1, .head_size = 2, .rope_freqs = true});
  for (const char* key :
       {"token_type", "merges", "bos_token_id", "eos_token_id", "unknown_token_id", "add_bos_token"}) {
    builder.Remove(absl::StrCat("tokenizer.ggml.", key));
  }
  builder.Remove("tokenizer.ggml.tokens");
  builder.Remove("tokenizer.chat_template");
  builder.Remove("llama.vocab_size");
  builder.AddStrings("tokenizer.ggml.tokens", {"a", "b", "c"});
  builder.AddNumbers<int32_t>("tokenizer.ggml.token_type", GgufType::kInt32, {1, 1, 3});
  GgufTensorSpec* embedding = builder.FindTensor("token_embd.weight");
  embedding->shape = {4, 3};
  embedding->bytes.resize(4 * 3 * sizeof(float));
  return builder;
}

absl::Status StatusOf(absl::Span<const uint8_t> image) {
  return GgufFile::Parse(image, "bad.gguf").status();
}

// The message for a file that must be refused; checks what all such messages have in common.
std::string Refusal(absl::Span<const uint8_t> image) {
  GuardedBytes guarded(image.size());
  const absl::Status status = StatusOf(guarded.Hold(image));
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  const std::string message(status.message());
  EXPECT_THAT(message, testing::StartsWith("bad.gguf: "));
  EXPECT_THAT(message, Not(HasSubstr("\n")));
  EXPECT_LT(message.size(), 700u);
  return message;
}

std::string Refusal(const GgufBuilder& builder) {
  return Refusal(builder.Build());
}

TEST(GgufHostileTest, TheSmallestModelIsSound) {
  const std::vector<uint8_t> image = SmallestModel().Build();
  const auto file = GgufFile::Parse(image, "small");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_TRUE(ReadHyperParameters(**file).ok()) << ReadHyperParameters(**file).status();
}

TEST(GgufHostileTest, RefusesAFileCutAtAnyByte) {
  const std::vector<uint8_t> image = SmallestModel().Build();
  GuardedBytes guarded(image.size());
  for (size_t size = 0; size < image.size(); ++size) {
    const absl::Status status = StatusOf(guarded.Hold(absl::MakeConstSpan(image).first(size)));
    ASSERT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << "cut at byte " << size;
    ASSERT_THAT(status.message(),
                testing::AnyOf(HasSubstr("truncated or damaged"), HasSubstr("not a GGUF file")))
        << "cut at byte " << size;
  }
  EXPECT_TRUE(StatusOf(guarded.Hold(image)).ok());
}

TEST(GgufHostileTest, RefusesAFileOnDiskCutAnywhere) {
  const std::vector<uint8_t> image = SmallestModel().Build();
  for (size_t size = 0; size < image.size(); size += 97) {
    const ScopedTempFile temp(absl::MakeConstSpan(image).first(size));
    const auto file = GgufFile::Open(temp.path());
    ASSERT_EQ(file.status().code(), absl::StatusCode::kInvalidArgument) << "cut at byte " << size;
    ASSERT_THAT(std::string(file.status().message()), testing::StartsWith(temp.path() + ": "));
  }
}

// Reads everything a sound file offers.
void UseAll(const GgufFile& file) {
  unsigned sum = 0;
  for (const TensorInfo& tensor : file.tensors()) {
    for (const uint8_t byte : tensor.bytes) sum += byte;
  }
  if (const auto tokens = file.GetStrings("tokenizer.ggml.tokens"); tokens.ok()) {
    for (const absl::string_view token : *tokens) {
      for (const char c : token) sum += static_cast<unsigned char>(c);
    }
  }
  EXPECT_EQ(file.Fingerprint().size(), 64u) << sum;
  const auto model = ReadHyperParameters(file);
  if (!model.ok()) {
    EXPECT_THAT(std::string(model.status().message()), Not(HasSubstr("\n")));
    return;
  }
  EXPECT_GT(StageWeightBytes(file, 0, model->num_layers, true, true), 0u);
}

TEST(GgufHostileTest, SurvivesFlippedBits) {
  const std::vector<uint8_t> image = SmallestModel().Build();
  GuardedBytes guarded(image.size());
  std::mt19937_64 random(20240607);
  int sound = 0;
  int refused = 0;
  for (int round = 0; round < 20000; ++round) {
    std::vector<uint8_t> changed = image;
    const int flips = 1 + static_cast<int>(random() % 4);
    for (int i = 0; i < flips; ++i) changed[random() % changed.size()] ^= uint8_t{1} << (random() % 8);
    const auto file = GgufFile::Parse(guarded.Hold(changed), "flipped");
    if (file.ok()) {
      ++sound;
      UseAll(**file);
    } else {
      ++refused;
      ASSERT_EQ(file.status().code(), absl::StatusCode::kInvalidArgument);
      ASSERT_THAT(std::string(file.status().message()), Not(HasSubstr("\n")));
    }
  }
  EXPECT_GT(sound, 1000);
  EXPECT_GT(refused, 1000);
}

// Overwrites runs of bytes with the numbers that break size arithmetic.
TEST(GgufHostileTest, SurvivesExtremeNumbersAnywhere) {
  const std::vector<uint8_t> image = SmallestModel().Build();
  GuardedBytes guarded(image.size());
  const uint64_t kExtremes[] = {0,
                                1,
                                255,
                                1u << 31,
                                UINT32_MAX,
                                uint64_t{1} << 32,
                                uint64_t{1} << 60,
                                uint64_t{1} << 61,
                                INT64_MAX,
                                uint64_t{1} << 63,
                                UINT64_MAX - 31,
                                UINT64_MAX};
  int refused = 0;
  for (size_t at = 0; at + 8 <= image.size(); ++at) {
    for (const uint64_t extreme : kExtremes) {
      std::vector<uint8_t> changed = image;
      std::memcpy(changed.data() + at, &extreme, sizeof(extreme));
      const auto file = GgufFile::Parse(guarded.Hold(changed), "extreme");
      if (file.ok()) {
        UseAll(**file);
      } else {
        ++refused;
      }
    }
  }
  EXPECT_GT(refused, 1000);
}

TEST(GgufHostileTest, RefusesWhatIsNotGguf) {
  const std::string text = "Once upon a time, in a file of another kind, ...";
  EXPECT_THAT(Refusal(absl::MakeConstSpan(reinterpret_cast<const uint8_t*>(text.data()), text.size())),
              HasSubstr("not a GGUF file: it begins with 'Once', not 'GGUF'"));
  EXPECT_THAT(Refusal(absl::Span<const uint8_t>()), HasSubstr("the file ends at byte 0"));
}

TEST(GgufHostileTest, RefusesOtherVersions) {
  GgufBuilder builder = SmallestModel();
  for (const uint32_t version : {1, 2}) {
    builder.set_version(version);
    EXPECT_THAT(Refusal(builder),
                HasSubstr(absl::StrCat("GGUF version ", version, " at byte 4; only version 3")));
  }
  builder.set_version(0x03000000);
  EXPECT_THAT(Refusal(builder), HasSubstr("big-endian"));
  builder.set_version(4);
  EXPECT_THAT(Refusal(builder), HasSubstr("unknown GGUF version 4"));
}

TEST(GgufHostileTest, RefusesHugeCounts) {
  for (const uint64_t huge : {uint64_t{65537}, uint64_t{1} << 32, uint64_t{1} << 63, UINT64_MAX}) {
    GgufBuilder tensors = SmallestModel();
    tensors.set_tensor_count(huge);
    EXPECT_THAT(Refusal(tensors),
                HasSubstr(absl::StrCat("number of tensors at byte 8 is ", huge, ", the limit is 65536")));
    GgufBuilder pairs = SmallestModel();
    pairs.set_metadata_count(huge);
    EXPECT_THAT(Refusal(pairs), HasSubstr(absl::StrCat("number of metadata pairs at byte 16 is ", huge)));
  }
  GgufBuilder more = SmallestModel();
  more.set_tensor_count(65536);
  EXPECT_THAT(Refusal(more), HasSubstr("metadata and tensor descriptions at byte 24 wants"));
}

// A string length, an array length, ...: `payload` is all there is of the value.
std::string RefusalOfValue(GgufType type, const std::vector<uint8_t>& payload) {
  GgufBuilder builder;
  builder.AddRaw("the.key", static_cast<uint32_t>(type), payload);
  builder.AddUint32("after", 1);
  return Refusal(builder);
}

TEST(GgufHostileTest, RefusesHugeStrings) {
  for (const uint64_t huge :
       {uint64_t{100}, uint64_t{1} << 28, uint64_t{1} << 32, UINT64_MAX - 8, UINT64_MAX}) {
    std::vector<uint8_t> payload;
    AppendBytes(payload, huge);
    EXPECT_THAT(RefusalOfValue(GgufType::kString, payload), HasSubstr("metadata key 'the.key': "));
  }
}

TEST(GgufHostileTest, RefusesHugeArrays) {
  for (uint32_t type = 0; type <= 12; ++type) {
    if (type == static_cast<uint32_t>(GgufType::kArray)) continue;
    for (const uint64_t huge :
         {uint64_t{100}, uint64_t{1} << 24, (uint64_t{1} << 61) + 1, uint64_t{1} << 63, UINT64_MAX}) {
      std::vector<uint8_t> payload;
      AppendBytes(payload, type);
      AppendBytes(payload, huge);
      EXPECT_THAT(RefusalOfValue(GgufType::kArray, payload), HasSubstr("metadata key 'the.key': array "));
    }
  }
}

TEST(GgufHostileTest, LimitsTheArraysOfAFileTogether) {
  GgufBuilder builder;
  const std::vector<uint8_t> half(kMaxGgufArrayElements / 2 + 1, 7);
  builder.AddNumbers<uint8_t>("first", GgufType::kUint8, half);
  builder.AddNumbers<uint8_t>("second", GgufType::kUint8, half);
  EXPECT_THAT(Refusal(builder), HasSubstr("metadata key 'second': array length"));
}

TEST(GgufHostileTest, RefusesUnknownValueTypes) {
  GgufBuilder builder;
  builder.AddRaw("the.key", 13, std::vector<uint8_t>(16));
  EXPECT_THAT(Refusal(builder), HasSubstr("metadata key 'the.key': unknown value type 13 at byte 39"));
  std::vector<uint8_t> payload;
  AppendBytes(payload, uint32_t{13});
  AppendBytes(payload, uint64_t{1});
  EXPECT_THAT(RefusalOfValue(GgufType::kArray, payload), HasSubstr("unknown array element type 13"));
}

TEST(GgufHostileTest, RefusesNestedArrays) {
  std::vector<uint8_t> payload;
  AppendBytes(payload, static_cast<uint32_t>(GgufType::kArray));
  AppendBytes(payload, uint64_t{1});
  AppendBytes(payload, static_cast<uint32_t>(GgufType::kUint8));
  AppendBytes(payload, uint64_t{0});
  EXPECT_THAT(RefusalOfValue(GgufType::kArray, payload), HasSubstr("nested arrays are not supported"));
}

TEST(GgufHostileTest, RefusesBoolsThatAreNeither) {
  EXPECT_THAT(RefusalOfValue(GgufType::kBool, {2}), HasSubstr("is 2, not 0 or 1"));
  GgufBuilder builder;
  builder.AddNumbers<uint8_t>("bools", GgufType::kBool, {0, 1, 255});
  EXPECT_THAT(Refusal(builder), HasSubstr("is 255, not 0 or 1"));
}

TEST(GgufHostileTest, RefusesDuplicateAndOddNames) {
  GgufBuilder keys;
  keys.AddUint32("same", 1);
  keys.AddUint32("same", 2);
  EXPECT_THAT(Refusal(keys), HasSubstr("metadata key 'same': appears twice"));
  GgufBuilder unnamed;
  unnamed.AddUint32("", 1);
  EXPECT_THAT(Refusal(unnamed), HasSubstr("metadata pair '1 of 1': empty key"));
  GgufBuilder endless;
  endless.AddUint32(std::string(kMaxGgufKeyBytes + 1, 'k'), 1);
  EXPECT_THAT(Refusal(endless), HasSubstr("length of key at byte 24 is 65536, the limit is 65535"));
  GgufBuilder tensors;
  for (int i = 0; i < 2; ++i) tensors.AddTensor({"same", 0, {8}, std::vector<uint8_t>(32), {}});
  EXPECT_THAT(Refusal(tensors), HasSubstr("tensor 'same': appears twice"));
  GgufBuilder unnamed_tensor;
  unnamed_tensor.AddTensor({"", 0, {8}, std::vector<uint8_t>(32), {}});
  EXPECT_THAT(Refusal(unnamed_tensor), HasSubstr("empty tensor name"));
  GgufBuilder endless_tensor;
  endless_tensor.AddTensor({std::string(257, 't'), 0, {8}, std::vector<uint8_t>(32), {}});
  EXPECT_THAT(Refusal(endless_tensor), HasSubstr("is 257, the limit is 256"));
}

TEST(GgufHostileTest, KeepsMessagesOnOneLineWhateverTheNames) {
  GgufBuilder builder;
  builder.AddRaw("line\nbreak\x1b[31m\xff", 99, {});
  EXPECT_THAT(Refusal(builder), HasSubstr("'line\\nbreak\\x1b[31m\\xff'"));
  GgufBuilder endless;
  endless.AddRaw(std::string(60000, 'k'), 99, {});
  EXPECT_THAT(Refusal(endless), HasSubstr("kkk...'"));
}

TEST(GgufHostileTest, RefusesBadAlignments) {
  for (const uint32_t alignment : {0, 1, 4, 12, 33, 65536 * 2}) {
    GgufBuilder builder = SmallestModel();
    builder.AddUint32("general.alignment", alignment);
    EXPECT_THAT(Refusal(builder),
                HasSubstr("'general.alignment' must be an unsigned power of two from 8 to 65536"));
  }
  GgufBuilder builder = SmallestModel();
  builder.AddString("general.alignment", "32");
  EXPECT_THAT(Refusal(builder), HasSubstr("'general.alignment' must be"));
}

// A file with two sound tensors of 64 bytes, the second changed.
std::string RefusalOfTensor(const std::function<void(GgufTensorSpec&)>& change) {
  GgufBuilder builder;
  builder.AddTensor({"first", 0, {16}, std::vector<uint8_t>(64), {}});
  builder.AddTensor({"second", 0, {16}, std::vector<uint8_t>(64), {}});
  EXPECT_TRUE(StatusOf(builder.Build()).ok());
  change(*builder.FindTensor("second"));
  const std::string message = Refusal(builder);
  EXPECT_THAT(message, HasSubstr("tensor 'second': "));
  return message;
}

TEST(GgufHostileTest, RefusesUnknownTensorTypes) {
  EXPECT_THAT(RefusalOfTensor([](GgufTensorSpec& t) { t.type = 10; }),
              HasSubstr("its type Q2_K (type 10) is not supported yet; supported are F32, F16, BF16, Q8_0, "
                        "Q4_0, Q4_1, Q5_0, Q4_K, Q5_K and Q6_K"));
  for (const uint32_t unknown : {4u, 5u, 31u, 43u, 1000u, UINT32_MAX}) {
    EXPECT_THAT(RefusalOfTensor([&](GgufTensorSpec& t) { t.type = unknown; }),
                HasSubstr(absl::StrCat("type ", unknown)));
  }
}

TEST(GgufHostileTest, RefusesBadShapes) {
  EXPECT_THAT(RefusalOfTensor([](GgufTensorSpec& t) { t.shape = {}; }), HasSubstr("is 0, must be 1 to 4"));
  EXPECT_THAT(RefusalOfTensor([](GgufTensorSpec& t) {
                t.shape = {1, 1, 1, 1, 16};
              }),
              HasSubstr("is 5, must be 1 to 4"));
  EXPECT_THAT(RefusalOfTensor([](GgufTensorSpec& t) { t.shape = {16, 0}; }), HasSubstr("is 0"));
  EXPECT_THAT(RefusalOfTensor([](GgufTensorSpec& t) { t.shape = {uint64_t{1} << 62}; }),
              HasSubstr("more than 2^63"));
  EXPECT_THAT(RefusalOfTensor([](GgufTensorSpec& t) { t.shape = {uint64_t{1} << 61}; }),
              HasSubstr("more than 2^63"));
  EXPECT_THAT(RefusalOfTensor([](GgufTensorSpec& t) {
                t.shape = {uint64_t{1} << 32, uint64_t{1} << 32, 4};
              }),
              HasSubstr("more than 2^63"));
  EXPECT_THAT(RefusalOfTensor([](GgufTensorSpec& t) {
                t.shape = {UINT64_MAX, UINT64_MAX};
              }),
              HasSubstr("more than 2^63"));
  EXPECT_THAT(RefusalOfTensor([](GgufTensorSpec& t) { t.type = 8; }),
              HasSubstr("has 16 columns, must be a multiple of 32 for type Q8_0"));
  EXPECT_THAT(RefusalOfTensor([](GgufTensorSpec& t) {
                t.type = 14;
                t.shape = {64, 4};
              }),
              HasSubstr("has 64 columns, must be a multiple of 256 for type Q6_K"));
}

TEST(GgufHostileTest, RefusesTensorsOutsideTheFile) {
  for (const uint64_t offset : {uint64_t{96}, uint64_t{128}, uint64_t{1} << 40, UINT64_MAX - 31}) {
    EXPECT_THAT(RefusalOfTensor([&](GgufTensorSpec& t) { t.offset = offset; }),
                HasSubstr(absl::StrCat("wants 64 bytes at data byte ", offset,
                                       ", but the file has 128 bytes of data")));
  }
  EXPECT_THAT(RefusalOfTensor([](GgufTensorSpec& t) { t.shape = {17}; }),
              HasSubstr("wants 68 bytes at data byte 64"));
  EXPECT_THAT(RefusalOfTensor([](GgufTensorSpec& t) { t.offset = 68; }),
              HasSubstr("its offset 68 is not a multiple of the alignment 32"));
}

TEST(GgufHostileTest, RefusesOverlappingTensors) {
  EXPECT_THAT(RefusalOfTensor([](GgufTensorSpec& t) { t.offset = 32; }),
              HasSubstr("begins at data byte 32 and overlaps tensor 'first', which ends at 64"));
  GgufBuilder same;
  same.AddTensor({"first", 0, {16}, std::vector<uint8_t>(64), {}});
  same.AddTensor({"second", 0, {16}, std::vector<uint8_t>(64), 0});
  EXPECT_THAT(Refusal(same), HasSubstr("overlaps tensor"));
  // The order in the file does not matter, nor do gaps.
  GgufBuilder apart;
  apart.AddTensor({"first", 0, {16}, std::vector<uint8_t>(64), 128});
  apart.AddTensor({"second", 0, {16}, std::vector<uint8_t>(192), 0});
  EXPECT_TRUE(StatusOf(apart.Build()).ok()) << StatusOf(apart.Build());
}

}  // namespace
}  // namespace millrace
