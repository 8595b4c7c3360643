// Writes the seeds of the GGUF corpus: small sound models, and files with one field broken each.
//   make_gguf_seeds FOLDER
#include <cstdio>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "tests/testing/gguf_builder.h"
#include "tests/testing/tiny_llama.h"

namespace millrace {
namespace {

using Seeds = std::map<std::string, std::vector<uint8_t>>;

// As small as a model can be while its header stays whole: a fuzzer's time goes into headers, not into
// weights.
GgufBuilder SmallModel(TinyLlamaOptions options) {
  options.layers = 1;
  GgufBuilder builder = TinyLlamaBuilder(options);
  for (const char* key :
       {"tokens", "token_type", "merges", "bos_token_id", "eos_token_id", "unknown_token_id"}) {
    builder.Remove(std::string("tokenizer.ggml.") + key);
  }
  builder.Remove("llama.vocab_size");
  builder.AddStrings("tokenizer.ggml.tokens", {"a", "b"});
  builder.AddNumbers<int32_t>("tokenizer.ggml.token_type", GgufType::kInt32, {1, 3});
  for (const char* name : {"token_embd.weight", "output.weight"}) {
    GgufTensorSpec* tensor = builder.FindTensor(name);
    if (tensor == nullptr) continue;
    tensor->bytes.resize(tensor->bytes.size() / tensor->shape[1] * 2);
    tensor->shape[1] = 2;
  }
  return builder;
}

constexpr TinyLlamaOptions TinyShape() {
  return {.hidden = 4, .ffn = 6, .heads = 2, .kv_heads = 1, .head_size = 2};
}

void AddModels(Seeds& seeds) {
  seeds["model_f32"] = SmallModel(TinyShape()).Build();
  TinyLlamaOptions untied = TinyShape();
  untied.tied = false;
  untied.rope_freqs = true;
  untied.rope_linear_factor = 2;
  untied.type = TensorType::kBF16;
  seeds["model_untied_bf16"] = SmallModel(untied).Build();
  for (const TensorType type : {TensorType::kQ4_0, TensorType::kQ4_1, TensorType::kQ5_0, TensorType::kQ8_0}) {
    const TinyLlamaOptions shape = {
        .hidden = 32, .ffn = 32, .heads = 2, .kv_heads = 1, .head_size = 16, .type = type};
    seeds["model_" + std::string(NameOf(type))] = SmallModel(shape).Build();
  }
  // A model of super-blocks would be large: tensors alone.
  GgufBuilder super_blocks;
  for (const TensorType type : {TensorType::kQ4_K, TensorType::kQ5_K, TensorType::kQ6_K}) {
    const size_t bytes = LayoutOf(type).bytes;
    super_blocks.AddTensor(
        {std::string(NameOf(type)), static_cast<uint32_t>(type), {256}, std::vector<uint8_t>(bytes), {}});
  }
  seeds["super_blocks"] = super_blocks.Build();
}

void AddMetadata(Seeds& seeds) {
  GgufBuilder kinds;
  kinds.AddNumber<uint8_t>("a", GgufType::kUint8, 1);
  kinds.AddNumber<int8_t>("b", GgufType::kInt8, -1);
  kinds.AddNumber<uint16_t>("c", GgufType::kUint16, 1);
  kinds.AddNumber<int16_t>("d", GgufType::kInt16, -1);
  kinds.AddUint32("e", 1);
  kinds.AddInt32("f", -1);
  kinds.AddFloat32("g", 1);
  kinds.AddBool("h", true);
  kinds.AddString("i", "text");
  kinds.AddUint64("j", 1);
  kinds.AddNumber<int64_t>("k", GgufType::kInt64, -1);
  kinds.AddNumber<double>("l", GgufType::kFloat64, 1);
  kinds.AddNumbers<uint8_t>("m", GgufType::kBool, {1, 0});
  kinds.AddNumbers<uint16_t>("n", GgufType::kUint16, {1, 2, 3});
  kinds.AddNumbers<double>("o", GgufType::kFloat64, {1, 2});
  kinds.AddStrings("p", {"x", "", "yz"});
  seeds["metadata_kinds"] = kinds.Build();
  seeds["empty"] = GgufBuilder().Build();
}

void AddBroken(Seeds& seeds) {
  GgufBuilder nested;
  std::vector<uint8_t> payload;
  AppendBytes(payload, static_cast<uint32_t>(GgufType::kArray));
  AppendBytes(payload, uint64_t{1});
  nested.AddRaw("nested", static_cast<uint32_t>(GgufType::kArray), payload);
  seeds["broken_nested_array"] = nested.Build();

  GgufBuilder aligned = SmallModel(TinyShape());
  aligned.AddUint32("general.alignment", 64);
  aligned.set_alignment(64);
  seeds["alignment_64"] = aligned.Build();

  GgufBuilder overlap = SmallModel(TinyShape());
  overlap.FindTensor("blk.0.ffn_up.weight")->offset = 0;
  seeds["broken_overlap"] = overlap.Build();

  GgufBuilder dimensions;
  dimensions.AddTensor({"t", 0, {uint64_t{1} << 32, uint64_t{1} << 32}, {1, 2, 3, 4}, {}});
  seeds["broken_dimensions"] = dimensions.Build();

  GgufBuilder type;
  type.AddTensor({"t", 10, {256}, std::vector<uint8_t>(84), {}});
  seeds["unsupported_type"] = type.Build();

  GgufBuilder counts;
  counts.set_tensor_count(UINT64_MAX);
  seeds["broken_counts"] = counts.Build();

  std::vector<uint8_t> cut = SmallModel(TinyShape()).Build();
  cut.resize(cut.size() / 2);
  seeds["broken_cut"] = cut;
}

int Write(const std::string& folder) {
  Seeds seeds;
  AddModels(seeds);
  AddMetadata(seeds);
  AddBroken(seeds);
  for (const auto& [name, bytes] : seeds) {
    const std::string path = folder + "/" + name;
    std::ofstream out(path, std::ios::binary);
    out.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    if (!out.flush()) {
      std::fprintf(stderr, "%s: cannot be written\n", path.c_str());
      return 1;
    }
  }
  std::printf("%zu seeds in %s\n", seeds.size(), folder.c_str());
  return 0;
}

}  // namespace
}  // namespace millrace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: make_gguf_seeds FOLDER\n");
    return 2;
  }
  return millrace::Write(argv[1]);
}
