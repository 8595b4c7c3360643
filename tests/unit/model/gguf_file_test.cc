#include "model/gguf_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/sha.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "tests/testing/gguf_builder.h"
#include "tests/testing/tiny_llama.h"

namespace millrace {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::vector<uint8_t> Filled(size_t size, uint8_t first) {
  std::vector<uint8_t> bytes(size);
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<uint8_t>(first + i);
  return bytes;
}

template <typename T>
T ValueAt(const GgufFile& file, absl::string_view key) {
  const GgufValue* value = file.Find(key);
  EXPECT_NE(value, nullptr) << key;
  const T* typed = value == nullptr ? nullptr : std::get_if<T>(value);
  EXPECT_NE(typed, nullptr) << key << " has another type";
  return typed == nullptr ? T() : *typed;
}

template <typename T>
std::vector<T> ArrayAt(const GgufFile& file, absl::string_view key) {
  const auto array = ValueAt<GgufArray>(file, key);
  const auto* values = std::get_if<std::vector<T>>(&array);
  EXPECT_NE(values, nullptr) << key << " has another element type";
  return values == nullptr ? std::vector<T>() : *values;
}

TEST(GgufFileTest, ReadsEveryKindOfNumber) {
  GgufBuilder builder;
  builder.AddNumber<uint8_t>("u8", GgufType::kUint8, 200);
  builder.AddNumber<int8_t>("i8", GgufType::kInt8, -100);
  builder.AddNumber<uint16_t>("u16", GgufType::kUint16, 60000);
  builder.AddNumber<int16_t>("i16", GgufType::kInt16, -30000);
  builder.AddUint32("u32", 4000000000);
  builder.AddInt32("i32", -2000000000);
  builder.AddUint64("u64", uint64_t{1} << 63);
  builder.AddNumber<int64_t>("i64", GgufType::kInt64, INT64_MIN);
  builder.AddFloat32("f32", 0.5f);
  builder.AddNumber<double>("f64", GgufType::kFloat64, 1e300);
  builder.AddBool("yes", true);
  builder.AddBool("no", false);
  const std::vector<uint8_t> image = builder.Build();
  const auto file = GgufFile::Parse(image, "numbers");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(ValueAt<uint64_t>(**file, "u8"), 200u);
  EXPECT_EQ(ValueAt<int64_t>(**file, "i8"), -100);
  EXPECT_EQ(ValueAt<uint64_t>(**file, "u16"), 60000u);
  EXPECT_EQ(ValueAt<int64_t>(**file, "i16"), -30000);
  EXPECT_EQ(ValueAt<uint64_t>(**file, "u32"), 4000000000u);
  EXPECT_EQ(ValueAt<int64_t>(**file, "i32"), -2000000000);
  EXPECT_EQ(ValueAt<uint64_t>(**file, "u64"), uint64_t{1} << 63);
  EXPECT_EQ(ValueAt<int64_t>(**file, "i64"), INT64_MIN);
  EXPECT_EQ(ValueAt<double>(**file, "f32"), 0.5);
  EXPECT_EQ(ValueAt<double>(**file, "f64"), 1e300);
  EXPECT_TRUE(ValueAt<bool>(**file, "yes"));
  EXPECT_FALSE(ValueAt<bool>(**file, "no"));
  EXPECT_EQ((*file)->Find("other"), nullptr);
}

TEST(GgufFileTest, ReadsEveryKindOfArray) {
  GgufBuilder builder;
  builder.AddNumbers<uint8_t>("u8", GgufType::kUint8, {1, 255});
  builder.AddNumbers<int8_t>("i8", GgufType::kInt8, {-1, 127});
  builder.AddNumbers<uint16_t>("u16", GgufType::kUint16, {65535});
  builder.AddNumbers<int16_t>("i16", GgufType::kInt16, {-2});
  builder.AddNumbers<uint32_t>("u32", GgufType::kUint32, {7, 8, 9});
  builder.AddNumbers<int32_t>("i32", GgufType::kInt32, {-7});
  builder.AddNumbers<uint64_t>("u64", GgufType::kUint64, {UINT64_MAX});
  builder.AddNumbers<int64_t>("i64", GgufType::kInt64, {INT64_MIN, 3});
  builder.AddNumbers<float>("f32", GgufType::kFloat32, {0.25f});
  builder.AddNumbers<double>("f64", GgufType::kFloat64, {-1e-300});
  builder.AddNumbers<uint8_t>("bools", GgufType::kBool, {1, 0, 1});
  builder.AddNumbers<uint32_t>("none", GgufType::kUint32, {});
  builder.AddStrings("strings", {"a", "", std::string("b\0c", 3)});
  const std::vector<uint8_t> image = builder.Build();
  const auto file = GgufFile::Parse(image, "arrays");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_THAT(ArrayAt<uint64_t>(**file, "u8"), ElementsAre(1, 255));
  EXPECT_THAT(ArrayAt<int64_t>(**file, "i8"), ElementsAre(-1, 127));
  EXPECT_THAT(ArrayAt<uint64_t>(**file, "u16"), ElementsAre(65535));
  EXPECT_THAT(ArrayAt<int64_t>(**file, "i16"), ElementsAre(-2));
  EXPECT_THAT(ArrayAt<uint64_t>(**file, "u32"), ElementsAre(7, 8, 9));
  EXPECT_THAT(ArrayAt<int64_t>(**file, "i32"), ElementsAre(-7));
  EXPECT_THAT(ArrayAt<uint64_t>(**file, "u64"), ElementsAre(UINT64_MAX));
  EXPECT_THAT(ArrayAt<int64_t>(**file, "i64"), ElementsAre(INT64_MIN, 3));
  EXPECT_THAT(ArrayAt<double>(**file, "f32"), ElementsAre(0.25));
  EXPECT_THAT(ArrayAt<double>(**file, "f64"), ElementsAre(-1e-300));
  EXPECT_THAT(ArrayAt<bool>(**file, "bools"), ElementsAre(true, false, true));
  EXPECT_THAT(ArrayAt<uint64_t>(**file, "none"), ElementsAre());
  EXPECT_THAT(*(*file)->GetStrings("strings"), ElementsAre("a", "", absl::string_view("b\0c", 3)));
}

TEST(GgufFileTest, KeepsStringsInPlace) {
  GgufBuilder builder;
  builder.AddString("text", "in the image");
  const std::vector<uint8_t> image = builder.Build();
  const auto file = GgufFile::Parse(image, "text");
  ASSERT_TRUE(file.ok()) << file.status();
  const auto text = (*file)->GetString("text");
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ(*text, "in the image");
  const auto* begin = reinterpret_cast<const uint8_t*>(text->data());
  EXPECT_GE(begin, image.data());
  EXPECT_LE(begin + text->size(), image.data() + image.size());
}

TEST(GgufFileTest, GettersNameFileAndKeyOfWhatIsMissing) {
  const std::vector<uint8_t> image = GgufBuilder().Build();
  const auto file = GgufFile::Parse(image, "empty.gguf");
  ASSERT_TRUE(file.ok()) << file.status();
  for (const absl::Status& status : {(*file)->GetUint("a.key").status(), (*file)->GetFloat("a.key").status(),
                                     (*file)->GetBool("a.key").status(), (*file)->GetString("a.key").status(),
                                     (*file)->GetStrings("a.key").status()}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
    EXPECT_EQ(status.message(), "empty.gguf: metadata key 'a.key' is missing");
  }
}

TEST(GgufFileTest, GettersRefuseOtherTypes) {
  GgufBuilder builder;
  builder.AddString("text", "7");
  builder.AddInt32("minus", -1);
  builder.AddInt32("plus", 7);
  builder.AddNumbers<uint32_t>("numbers", GgufType::kUint32, {1});
  const std::vector<uint8_t> image = builder.Build();
  const auto file = GgufFile::Parse(image, "f");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->GetUint("text").status(),
            absl::InvalidArgumentError("f: metadata key 'text' is a string, must be an unsigned integer"));
  EXPECT_EQ((*file)->GetUint("minus").status(),
            absl::InvalidArgumentError("f: metadata key 'minus' is -1, must not be negative"));
  EXPECT_EQ(*(*file)->GetUint("plus"), 7u);
  EXPECT_EQ((*file)->GetFloat("plus").status(),
            absl::InvalidArgumentError("f: metadata key 'plus' is a signed integer, must be a float"));
  EXPECT_EQ((*file)->GetBool("numbers").status(),
            absl::InvalidArgumentError("f: metadata key 'numbers' is an array, must be a bool"));
  EXPECT_EQ((*file)->GetString("plus").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ((*file)->GetStrings("numbers").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ((*file)->GetStrings("text").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(GgufFileTest, FindsTensorsWithTheirBytes) {
  for (const uint64_t alignment : {8, 32, 64, 4096}) {
    GgufBuilder builder;
    builder.AddUint32("general.alignment", alignment);
    builder.set_alignment(alignment);
    const std::vector<uint8_t> vector = Filled(5 * 4, 1);
    const std::vector<uint8_t> matrix = Filled(2 * 3 * 20, 77);
    const std::vector<uint8_t> deep = Filled(2 * 2 * 2 * 2 * 2, 9);
    builder.AddTensor({"vector", 0, {5}, vector, {}});
    builder.AddTensor({"matrix", 3, {64, 3}, matrix, {}});
    builder.AddTensor({"deep", 30, {2, 2, 2, 2}, deep, {}});
    const std::vector<uint8_t> image = builder.Build();
    const auto file = GgufFile::Parse(image, "tensors");
    ASSERT_TRUE(file.ok()) << file.status();
    ASSERT_EQ((*file)->tensors().size(), 3u);
    const TensorInfo* found = (*file)->FindTensor("matrix");
    ASSERT_EQ(found, &(*file)->tensors()[1]);
    EXPECT_EQ(found->name, "matrix");
    EXPECT_EQ(found->type, TensorType::kQ4_1);
    EXPECT_THAT(found->shape, ElementsAre(64, 3));
    EXPECT_EQ(found->bytes, absl::MakeConstSpan(matrix));
    EXPECT_EQ((found->bytes.data() - image.data()) % alignment, 0u);
    EXPECT_EQ((*file)->FindTensor("vector")->bytes, absl::MakeConstSpan(vector));
    EXPECT_EQ((*file)->FindTensor("deep")->bytes, absl::MakeConstSpan(deep));
    EXPECT_EQ((*file)->FindTensor("matri"), nullptr);
  }
}

TEST(GgufFileTest, KnowsTheLayoutOfEachType) {
  const struct {
    TensorType type;
    absl::string_view name;
    uint32_t elements;
    uint32_t bytes;
  } kCases[] = {{TensorType::kF32, "F32", 1, 4},       {TensorType::kF16, "F16", 1, 2},
                {TensorType::kBF16, "BF16", 1, 2},     {TensorType::kQ8_0, "Q8_0", 32, 34},
                {TensorType::kQ4_0, "Q4_0", 32, 18},   {TensorType::kQ4_1, "Q4_1", 32, 20},
                {TensorType::kQ5_0, "Q5_0", 32, 22},   {TensorType::kQ4_K, "Q4_K", 256, 144},
                {TensorType::kQ5_K, "Q5_K", 256, 176}, {TensorType::kQ6_K, "Q6_K", 256, 210}};
  for (const auto& c : kCases) {
    EXPECT_EQ(NameOf(c.type), c.name);
    EXPECT_EQ(LayoutOf(c.type).elements, c.elements) << c.name;
    EXPECT_EQ(LayoutOf(c.type).bytes, c.bytes) << c.name;
  }
}

TEST(GgufFileTest, ReadsALargeVocabulary) {
  std::vector<std::string> tokens(150000);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = absl::StrCat("token", i);
  GgufBuilder builder;
  builder.AddStrings("tokenizer.ggml.tokens", tokens);
  const std::vector<uint8_t> image = builder.Build();
  const auto file = GgufFile::Parse(image, "vocabulary");
  ASSERT_TRUE(file.ok()) << file.status();
  const auto read = (*file)->GetStrings("tokenizer.ggml.tokens");
  ASSERT_TRUE(read.ok()) << read.status();
  ASSERT_EQ(read->size(), tokens.size());
  for (size_t i = 0; i < tokens.size(); ++i) ASSERT_EQ((*read)[i], tokens[i]);
}

TEST(GgufFileOpenTest, MapsAFile) {
  const std::vector<uint8_t> image = BuildTinyLlama({});
  const ScopedTempFile temp(image);
  const auto file = GgufFile::Open(temp.path());
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->path(), temp.path());
  EXPECT_EQ((*file)->size_bytes(), image.size());
  const auto parsed = GgufFile::Parse(image, "memory");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  ASSERT_EQ((*file)->tensors().size(), (*parsed)->tensors().size());
  for (size_t i = 0; i < (*file)->tensors().size(); ++i) {
    EXPECT_EQ((*file)->tensors()[i].bytes, (*parsed)->tensors()[i].bytes);
  }
  EXPECT_EQ((*file)->Fingerprint(), (*parsed)->Fingerprint());
}

TEST(GgufFileOpenTest, KeepsTheOldFileWhenAnotherIsRenamedOverIt) {
  const std::vector<uint8_t> image = BuildTinyLlama({.seed = 1});
  const ScopedTempFile old_file(image);
  const ScopedTempFile new_file(BuildTinyLlama({.layers = 1, .seed = 2}));
  const auto file = GgufFile::Open(old_file.path());
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ(std::rename(new_file.path().c_str(), old_file.path().c_str()), 0);
  const auto parsed = GgufFile::Parse(image, "memory");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ((*file)->Fingerprint(), (*parsed)->Fingerprint());
}

TEST(GgufFileOpenTest, SaysWhyAPathCannotBeOpened) {
  const std::string folder = testing::TempDir();
  const auto missing = GgufFile::Open(folder + "/no-such-model.gguf");
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(missing.status().message(), HasSubstr("/no-such-model.gguf: cannot open"));

  const auto directory = GgufFile::Open(folder);
  EXPECT_EQ(directory.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(directory.status().message(), HasSubstr("not a regular file"));

  const ScopedTempFile empty({});
  const auto nothing = GgufFile::Open(empty.path());
  EXPECT_EQ(nothing.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(nothing.status().message(), HasSubstr(empty.path() + ": the file is empty"));
}

TEST(GgufFileOpenTest, DoesNotWaitForTheWriterOfAPipe) {
  const std::string path = absl::StrCat(testing::TempDir(), "/pipe-", getpid());
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  const auto file = GgufFile::Open(path);
  unlink(path.c_str());
  EXPECT_EQ(file.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(file.status().message(), HasSubstr("not a regular file"));
}

// One tensor far longer than the sample that the fingerprint takes.
GgufBuilder LongTensor() {
  GgufBuilder builder;
  builder.AddString("general.name", "one");
  builder.AddTensor({"long", 0, {4096}, Filled(4 * 4096, 3), {}});
  return builder;
}

std::string FingerprintOf(const std::vector<uint8_t>& image) {
  const auto file = GgufFile::Parse(image, "f");
  EXPECT_TRUE(file.ok()) << file.status();
  return file.ok() ? (*file)->Fingerprint() : "";
}

TEST(GgufFingerprintTest, IsTheHashOfSizeHeaderAndSamples) {
  const std::vector<uint8_t> image = LongTensor().Build();
  const size_t data_begin = image.size() - 4 * 4096;
  const size_t header_bytes = 8 * 3 + (8 + 12 + 4 + 8 + 3) + (8 + 4 + 4 + 8 + 4 + 8);
  ASSERT_EQ((header_bytes + 31) / 32 * 32, data_begin);
  std::vector<uint8_t> hashed;
  AppendBytes(hashed, static_cast<uint64_t>(image.size()));
  hashed.insert(hashed.end(), image.begin(), image.begin() + header_bytes);
  hashed.insert(hashed.end(), image.begin() + data_begin, image.begin() + data_begin + 4096);
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(hashed.data(), hashed.size(), digest);
  const std::string hex =
      absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(digest), sizeof(digest)));
  EXPECT_EQ(FingerprintOf(image), hex);
}

TEST(GgufFingerprintTest, ChangesWithMetadataSizeAndTheStartOfTensors) {
  const std::string before = FingerprintOf(LongTensor().Build());
  GgufBuilder renamed = LongTensor();
  renamed.Remove("general.name");
  renamed.AddString("general.name", "two");
  EXPECT_NE(FingerprintOf(renamed.Build()), before);
  std::vector<uint8_t> longer = LongTensor().Build();
  longer.push_back(0);
  EXPECT_NE(FingerprintOf(longer), before);
  for (const size_t at : {0, 1, 4095}) {
    GgufBuilder changed = LongTensor();
    changed.FindTensor("long")->bytes[at] ^= 1;
    EXPECT_NE(FingerprintOf(changed.Build()), before) << at;
  }
  GgufBuilder unsampled = LongTensor();
  unsampled.FindTensor("long")->bytes[4096] ^= 1;
  EXPECT_EQ(FingerprintOf(unsampled.Build()), before);
}

}  // namespace
}  // namespace millrace
