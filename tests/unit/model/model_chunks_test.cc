#include "model/model_chunks.h"

#include <memory>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/tiny_llama.h"

namespace millrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

struct Model {
  std::vector<uint8_t> bytes;
  std::unique_ptr<GgufFile> file;
};

// A vocabulary of 20,000 rows of 64 floats: embedding and output of 5 MB each take several chunks.
Model MakeModel() {
  Model model;
  model.bytes = BuildTinyLlama({.layers = 2, .vocabulary = 20000, .tied = false, .rope_freqs = true});
  model.file = *GgufFile::Parse(model.bytes, "tiny");
  return model;
}

ModelManifest ThreeChunks() {
  ModelManifest manifest;
  manifest.fingerprint = "f";
  manifest.file_bytes = 100;
  manifest.header_chunks = 1;
  manifest.chunks = {{0, 10, {}}, {16, 20, {}}, {36, 30, {}}};
  return manifest;
}

TEST(ModelChunks, CutEachTensorByItself) {
  const Model model = MakeModel();
  uint64_t hashed = 0;
  const ModelManifest manifest = *MakeManifest(*model.file, 3, [&](uint64_t bytes) {
    EXPECT_GT(bytes, hashed);
    hashed = bytes;
    return true;
  });
  EXPECT_TRUE(CheckManifest(manifest).ok());
  EXPECT_EQ(manifest.fingerprint, model.file->Fingerprint());
  EXPECT_EQ(manifest.file_bytes, model.bytes.size());
  uint64_t all = model.file->header_bytes();
  for (const TensorInfo& tensor : model.file->tensors()) {
    const ByteRange range = RangeInFile(*model.file, tensor.bytes);
    const std::vector<uint32_t> chunks = ChunksOf(manifest, {&range, 1});
    EXPECT_EQ(BytesOf(manifest, chunks), tensor.bytes.size()) << tensor.name;
    EXPECT_EQ(chunks.size(), (tensor.bytes.size() + kMaxChunkBytes - 1) / kMaxChunkBytes) << tensor.name;
    all += tensor.bytes.size();
  }
  uint64_t cut = 0;
  for (const ModelChunk& chunk : manifest.chunks) {
    EXPECT_EQ(chunk.sha256, Sha256Of(absl::MakeConstSpan(model.bytes).subspan(chunk.offset, chunk.size)));
    cut += chunk.size;
  }
  EXPECT_EQ(cut, all);
  EXPECT_LE(hashed, all);
}

TEST(ModelChunks, HashingCanBeStopped) {
  const Model model = MakeModel();
  int turns = 0;
  const absl::Status status = MakeManifest(*model.file, 1, [&](uint64_t) { return ++turns < 3; }).status();
  EXPECT_TRUE(absl::IsCancelled(status)) << status;
  EXPECT_EQ(turns, 3);
}

TEST(ModelChunks, RangesTakeTheChunksTheyTouch) {
  const ModelManifest manifest = ThreeChunks();
  const auto chunks = [&](std::vector<ByteRange> ranges) { return ChunksOf(manifest, ranges); };
  EXPECT_THAT(chunks({{0, 10}}), ElementsAre(0));
  EXPECT_THAT(chunks({{10, 6}}), IsEmpty());  // padding
  EXPECT_THAT(chunks({{9, 8}}), ElementsAre(0, 1));
  EXPECT_THAT(chunks({{35, 1}}), ElementsAre(1));
  EXPECT_THAT(chunks({{36, 1}}), ElementsAre(2));
  EXPECT_THAT(chunks({{20, 0}}), IsEmpty());
  EXPECT_THAT(chunks({{40, 1}, {0, 1}, {41, 2}}), ElementsAre(0, 2));
  EXPECT_THAT(chunks({{66, 34}}), IsEmpty());
  EXPECT_EQ(BytesOf(manifest, {0, 2}), 40u);
}

TEST(ModelChunks, DigestNamesEverything) {
  const std::string digest = ManifestDigest(ThreeChunks());
  EXPECT_EQ(digest.size(), 64u);
  EXPECT_EQ(digest, ManifestDigest(ThreeChunks()));
  std::vector<ModelManifest> others(7, ThreeChunks());
  others[0].fingerprint = "g";
  others[1].file_bytes = 101;
  others[2].header_chunks = 2;
  others[3].chunks[1].offset = 17;
  others[4].chunks[1].size = 19;
  others[5].chunks[2].sha256[31] = 1;
  others[6].chunks.pop_back();
  for (const ModelManifest& other : others) EXPECT_NE(ManifestDigest(other), digest);
}

TEST(ModelChunks, RefusesManifestsThatCannotBe) {
  EXPECT_TRUE(CheckManifest(ThreeChunks()).ok());
  const auto refused = [](auto change) {
    ModelManifest manifest = ThreeChunks();
    change(manifest);
    const absl::Status status = CheckManifest(manifest);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_THAT(refused([](ModelManifest& m) { m.chunks[1].offset = 9; }), HasSubstr("chunk 1 overlaps"));
  EXPECT_THAT(refused([](ModelManifest& m) { m.chunks[2].offset = 90; }), HasSubstr("outside of the file"));
  EXPECT_THAT(refused([](ModelManifest& m) { m.chunks[2].offset = ~uint64_t{0} - 5; }),
              HasSubstr("outside of the file"));
  EXPECT_THAT(refused([](ModelManifest& m) { m.chunks[0].size = 0; }), HasSubstr("has 0 bytes"));
  EXPECT_THAT(refused([](ModelManifest& m) { m.chunks[2].size = kMaxChunkBytes + 1; }), HasSubstr("bytes"));
  EXPECT_THAT(refused([](ModelManifest& m) { m.header_chunks = 2; }), HasSubstr("gap in the header"));
  EXPECT_THAT(refused([](ModelManifest& m) { m.header_chunks = 4; }), HasSubstr("4 of the header"));
  EXPECT_THAT(refused([](ModelManifest& m) { m.header_chunks = 0; }), HasSubstr("0 of the header"));
  EXPECT_THAT(refused([](ModelManifest& m) { m.chunks.clear(); }), HasSubstr("0 chunks"));
  EXPECT_THAT(refused([](ModelManifest& m) { m.file_bytes = ~uint64_t{0}; }), HasSubstr("bytes"));
}

}  // namespace
}  // namespace millrace
