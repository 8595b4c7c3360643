// Any bytes as a model file: parsed, read as a model, hashed, and every byte it points to touched.
#include <cstddef>
#include <cstdint>
#include <string>
#include <variant>

#include "common/check.h"
#include "model/gguf_file.h"
#include "model/hyper_parameters.h"

namespace millrace {
namespace {

// Kept where the compiler cannot see that nobody looks.
volatile unsigned touched = 0;

void Touch(absl::Span<const uint8_t> bytes) {
  unsigned sum = 0;
  for (const uint8_t byte : bytes) sum += byte;
  touched = touched + sum;
}

void Touch(absl::string_view text) {
  Touch(absl::MakeConstSpan(reinterpret_cast<const uint8_t*>(text.data()), text.size()));
}

void CheckMessage(const absl::Status& status) {
  MILLRACE_CHECK(status.code() == absl::StatusCode::kInvalidArgument);
  MILLRACE_CHECK(status.message().find("fuzz.gguf: ") == 0);
  for (const char c : status.message()) MILLRACE_CHECK(c >= ' ' && c <= '~');
}

void UseMetadata(const GgufFile& file) {
  for (const char* key :
       {"general.name", "tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.chat_template"}) {
    if (const auto text = file.GetString(key); text.ok()) Touch(*text);
  }
  for (const char* key : {"tokenizer.ggml.tokens", "tokenizer.ggml.merges"}) {
    const auto texts = file.GetStrings(key);
    if (!texts.ok()) continue;
    for (const absl::string_view text : *texts) Touch(text);
  }
}

void UseTensors(const GgufFile& file, absl::Span<const uint8_t> image) {
  for (const TensorInfo& tensor : file.tensors()) {
    MILLRACE_CHECK(tensor.bytes.data() >= image.data());
    MILLRACE_CHECK(tensor.bytes.data() + tensor.bytes.size() <= image.data() + image.size());
    MILLRACE_CHECK(file.FindTensor(tensor.name) == &tensor);
    Touch(tensor.bytes);
  }
}

void UseModel(const GgufFile& file) {
  const auto model = ReadHyperParameters(file);
  if (!model.ok()) {
    CheckMessage(model.status());
    return;
  }
  MILLRACE_CHECK(model->num_heads % model->num_kv_heads == 0);
  MILLRACE_CHECK(model->rope_dims % 2 == 0 && model->rope_dims <= model->head_size);
  const EndTensors ends = FindEndTensors(file);
  MILLRACE_CHECK(ends.output->shape[1] == model->vocabulary_size);
  MILLRACE_CHECK((ends.output == ends.token_embedding) == model->tied_output);
  for (uint32_t layer = 0; layer < model->num_layers; ++layer) {
    MILLRACE_CHECK(FindLayerTensors(file, layer).ffn_down->shape[0] == model->ffn_size);
  }
  MILLRACE_CHECK(StageWeightBytes(file, 0, model->num_layers, true, true) <= file.size_bytes());
}

}  // namespace
}  // namespace millrace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto image = absl::MakeConstSpan(data, size);
  const auto file = millrace::GgufFile::Parse(image, "fuzz.gguf");
  if (!file.ok()) {
    millrace::CheckMessage(file.status());
    return 0;
  }
  millrace::UseMetadata(**file);
  millrace::UseTensors(**file, image);
  millrace::UseModel(**file);
  MILLRACE_CHECK((*file)->Fingerprint().size() == 64);
  return 0;
}
