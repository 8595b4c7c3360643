#include "model/pre_tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "model/utf8.h"

namespace millrace {
namespace {

// In the expressions, <S> stands for the inside of a class of Unicode's White_Space: the category Z and six
// control characters. PCRE2's own \s has one character more (U+180E).
constexpr char kWhiteSpace[] = R"(\p{Z}\x{09}-\x{0D}\x{85})";

// Contractions, then words, numbers and other runs with at most one space before, then white space; of a
// white space run before something else, the last character goes with that.
constexpr char kGpt2[] =
    R"('(?:[stmd]|re|ve|ll)| ?\p{L}+| ?\p{N}+| ?[^<S>\p{L}\p{N}]+|[<S>]+(?![^<S>])|[<S>]+)";

// First every \p{N} alone, then GPT-2's expression on what lies between. In one: a number ends a white space
// run as the end of the text does.
constexpr char kSmolLm[] =
    R"('(?:[stmd]|re|ve|ll)| ?\p{L}+|\p{N}| ?[^<S>\p{L}\p{N}]+|[<S>]+(?![^<S>\p{N}])|[<S>]+)";

// Llama 3 and Qwen 2 differ in how many digits go together.
constexpr char kLlama3[] =
    R"((?i:'(?:[stmd]|re|ve|ll))|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^<S>\p{L}\p{N}]+[\r\n]*)"
    R"(|[<S>]*[\r\n]+|[<S>]+(?![^<S>])|[<S>]+)";
constexpr char kQwen2[] =
    R"((?i:'(?:[stmd]|re|ve|ll))|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^<S>\p{L}\p{N}]+[\r\n]*)"
    R"(|[<S>]*[\r\n]+|[<S>]+(?![^<S>])|[<S>]+)";

struct Family {
  const char* name;
  const char* expression;
  bool ignores_merges;
  bool adds_bos;
};

constexpr Family kFamilies[] = {
    {"smollm", kSmolLm, false, false}, {"gpt-2", kGpt2, false, false},    {"llama-bpe", kLlama3, true, true},
    {"llama3", kLlama3, true, true},   {"llama-v3", kLlama3, true, true}, {"qwen2", kQwen2, false, false},
};

// A white space run is walked back once in search of its last line break, so the steps of a match are at most
// a small multiple of the run's length; texts of tens of megabytes stay below this.
constexpr uint32_t kMatchSteps = 200'000'000;
constexpr uint32_t kMatchHeapKib = 64 * 1024;

struct CodeDeleter {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
};
struct MatchContextDeleter {
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
};
struct MatchDataDeleter {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};

const Family* FindFamily(absl::string_view name) {
  for (const Family& family : kFamilies) {
    if (family.name == name) return &family;
  }
  return nullptr;
}

std::string FamilyNames() {
  std::string names;
  for (const Family& family : kFamilies) absl::StrAppend(&names, names.empty() ? "" : ", ", family.name);
  return names;
}

}  // namespace

struct PreTokenizer::Impl {
  const Family* family;
  std::unique_ptr<pcre2_code, CodeDeleter> code;
  std::unique_ptr<pcre2_match_context, MatchContextDeleter> context;

  // Length of the piece at `at` in `run`, which is valid UTF-8.
  size_t PieceLength(absl::string_view run, size_t at, pcre2_match_data* data) const;
};

size_t PreTokenizer::Impl::PieceLength(absl::string_view run, size_t at, pcre2_match_data* data) const {
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(run.data());
  const size_t rest = run.size() - at;
  if (data == nullptr) return rest;
  int rc = pcre2_match(code.get(), subject, run.size(), at, PCRE2_NO_UTF_CHECK, data, context.get());
  if (rc == PCRE2_ERROR_JIT_STACKLIMIT) {
    rc = pcre2_match(code.get(), subject, run.size(), at, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, data,
                     context.get());
  }
  if (rc < 0) return rest;
  const size_t end = pcre2_get_ovector_pointer(data)[1];
  return end > at ? end - at : rest;
}

absl::StatusOr<std::unique_ptr<PreTokenizer>> PreTokenizer::Create(absl::string_view name) {
  const Family* family = FindFamily(name);
  if (family == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("unknown pre-tokenizer '", name, "'; known: ", FamilyNames()));
  }
  auto impl = std::make_unique<Impl>();
  impl->family = family;
  const std::string expression = absl::StrReplaceAll(family->expression, {{"<S>", kWhiteSpace}});
  int error = 0;
  size_t offset = 0;
  impl->code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(expression.data()), expression.size(),
                                 PCRE2_UTF | PCRE2_UCP | PCRE2_ANCHORED, &error, &offset, nullptr));
  impl->context.reset(pcre2_match_context_create(nullptr));
  if (impl->code == nullptr || impl->context == nullptr) {
    return absl::InternalError(absl::StrCat("PCRE2 refused the expression of pre-tokenizer '", name, "' at ",
                                            offset, ": error ", error));
  }
  // Where the system forbids executable memory this fails, and matches are interpreted.
  pcre2_jit_compile(impl->code.get(), PCRE2_JIT_COMPLETE);
  pcre2_set_match_limit(impl->context.get(), kMatchSteps);
  pcre2_set_heap_limit(impl->context.get(), kMatchHeapKib);
  return std::unique_ptr<PreTokenizer>(new PreTokenizer(std::move(impl)));
}

PreTokenizer::PreTokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
PreTokenizer::~PreTokenizer() = default;

void PreTokenizer::Split(absl::string_view text,
                         absl::FunctionRef<void(absl::string_view piece)> emit) const {
  const std::unique_ptr<pcre2_match_data, MatchDataDeleter> data(pcre2_match_data_create(1, nullptr));
  while (!text.empty()) {
    const absl::string_view run = text.substr(0, ValidUtf8Prefix(text));
    for (size_t at = 0; at < run.size();) {
      const size_t length = impl_->PieceLength(run, at, data.get());
      emit(run.substr(at, length));
      at += length;
    }
    text.remove_prefix(run.size());
    if (text.empty()) break;
    emit(text.substr(0, 1));
    text.remove_prefix(1);
  }
}

bool PreTokenizer::ignores_merges() const {
  return impl_->family->ignores_merges;
}
bool PreTokenizer::adds_bos() const {
  return impl_->family->adds_bos;
}

}  // namespace millrace
