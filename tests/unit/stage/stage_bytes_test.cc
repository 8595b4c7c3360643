#include "worker/stage/stage_bytes.h"

#include <cmath>
#include <set>

#include "gtest/gtest.h"
#include "tests/testing/tiny_llama.h"

namespace millrace {
namespace {

struct Model {
  std::vector<uint8_t> bytes;
  std::unique_ptr<GgufFile> file;
  HyperParameters hyper_parameters;
};

Model MakeModel(const TinyLlamaOptions& options) {
  Model model;
  model.bytes = BuildTinyLlama(options);
  model.file = *GgufFile::Parse(model.bytes, "tiny");
  model.hyper_parameters = *ReadHyperParameters(*model.file);
  return model;
}

// Names of the tensors whose chunks a stage needs, each of them whole.
std::set<std::string> Needed(const Model& model, const StageLayout& layout, uint32_t shards) {
  const ModelManifest manifest = *MakeManifest(*model.file, 1);
  const absl::StatusOr<std::vector<ByteRange>> ranges =
      StageByteRanges(*model.file, model.hyper_parameters, layout, shards);
  EXPECT_TRUE(ranges.ok()) << ranges.status();
  const std::vector<uint32_t> chunks = ChunksOf(manifest, *ranges);
  std::set<std::string> names;
  uint64_t bytes = 0;
  for (const TensorInfo& tensor : model.file->tensors()) {
    const ByteRange whole = RangeInFile(*model.file, tensor.bytes);
    for (const uint32_t chunk : ChunksOf(manifest, {&whole, 1})) {
      if (std::find(chunks.begin(), chunks.end(), chunk) == chunks.end()) continue;
      names.insert(tensor.name);
      bytes += manifest.chunks[chunk].size;
    }
    if (names.count(tensor.name) != 0) bytes -= tensor.bytes.size();
  }
  EXPECT_EQ(bytes, 0u) << "part of a tensor is missing";
  return names;
}

std::set<std::string> LayersOf(const Model& model, uint32_t first, uint32_t count) {
  std::set<std::string> names;
  for (const TensorInfo& tensor : model.file->tensors()) {
    for (uint32_t layer = first; layer < first + count; ++layer) {
      if (tensor.name.rfind("blk." + std::to_string(layer) + ".", 0) == 0) names.insert(tensor.name);
    }
  }
  return names;
}

TEST(StageBytes, AreThoseOfItsTensorsWhateverTheShards) {
  const Model tied = MakeModel({.layers = 4});
  const Model untied = MakeModel({.layers = 4, .type = TensorType::kQ8_0, .tied = false, .rope_freqs = true});
  for (const uint32_t shards : {1u, 2u}) {
    for (const Model* model : {&tied, &untied}) {
      const bool own_output = model == &untied;
      std::set<std::string> first = LayersOf(*model, 0, 1);
      EXPECT_EQ(first.size(), 9u);
      first.insert("token_embd.weight");
      std::set<std::string> middle = LayersOf(*model, 1, 2);
      std::set<std::string> last = LayersOf(*model, 3, 1);
      last.insert({"output_norm.weight", own_output ? "output.weight" : "token_embd.weight"});
      if (own_output) {
        for (std::set<std::string>* names : {&first, &middle, &last}) names->insert("rope_freqs.weight");
      }
      EXPECT_EQ(Needed(*model, {0, 1, true, false}, shards), first);
      EXPECT_EQ(Needed(*model, {1, 2, false, false}, shards), middle);
      EXPECT_EQ(Needed(*model, {3, 1, false, true}, shards), last);
    }
  }
  EXPECT_EQ(StageByteRanges(*tied.file, tied.hyper_parameters, {0, 1, true, false}, 3).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(StandInModel, HasOrdinaryNumbersWhereALayoutReads) {
  const Model model = MakeModel({.layers = 3, .rope_freqs = true});
  const absl::StatusOr<std::unique_ptr<StandInModel>> stand_in =
      StandInModel::Create(*model.file, model.hyper_parameters, {2, 1, false, true}, 1);
  ASSERT_TRUE(stand_in.ok()) << stand_in.status();
  const GgufFile& file = (*stand_in)->file();
  EXPECT_EQ(file.size_bytes(), model.bytes.size());
  for (const std::string name : {"blk.2.ffn_up.weight", "blk.2.attn_norm.weight", "token_embd.weight"}) {
    const auto* values = reinterpret_cast<const float*>(file.FindTensor(name)->bytes.data());
    EXPECT_TRUE(std::isnormal(values[0]) && values[0] > 0.1f && values[0] < 1.0f) << name;
  }
  EXPECT_EQ(file.FindTensor("blk.1.ffn_up.weight")->bytes[0], 0);
}

}  // namespace
}  // namespace millrace
