// What llama.cpp computes for given tokens of a model, one thread. make_llama_cpp_golden.py compiles and
// feeds it.
//
//   llama_cpp_logits MODEL FLASH(0|1) <CASES >RESULTS
//
// CASES, numbers between spaces, per case: how many ids are the prompt's, how many ids, the ids, how many
// tokens to tell logits of, the tokens. RESULTS, a line per case: mean negative log likelihood of the prompt
// (0 for one token), then at the prompt's last id the logsumexp and the logits of the tokens, then the most
// likely token after each id from the prompt's last to the last but one of all.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <vector>

#include "llama.h"

namespace {

constexpr int kContext = 4096;
constexpr int kBatch = 512;

struct Case {
  size_t prompt = 0;
  std::vector<llama_token> ids;
  std::vector<llama_token> tokens;
};

bool ReadList(std::vector<llama_token>& list) {
  size_t count = 0;
  if (!(std::cin >> count) || count > kContext) return false;
  list.resize(count);
  for (llama_token& id : list) std::cin >> id;
  return static_cast<bool>(std::cin);
}

double LogSumExp(const float* logits, int count) {
  const double largest = *std::max_element(logits, logits + count);
  double sum = 0;
  for (int i = 0; i < count; ++i) sum += std::exp(logits[i] - largest);
  return largest + std::log(sum);
}

bool Decode(llama_context* context, const Case& c, size_t begin, size_t end) {
  llama_batch batch = llama_batch_init(kBatch, 0, 1);
  for (size_t i = begin; i < end; ++i) {
    const auto at = static_cast<size_t>(batch.n_tokens++);
    batch.token[at] = c.ids[i];
    batch.pos[at] = static_cast<llama_pos>(i);
    batch.n_seq_id[at] = 1;
    batch.seq_id[at][0] = 0;
    batch.logits[at] = 1;
  }
  const int status = llama_decode(context, batch);
  llama_batch_free(batch);
  return status == 0;
}

bool Run(llama_context* context, const Case& c, int vocabulary) {
  llama_memory_clear(llama_get_memory(context), true);
  double nll = 0;
  std::vector<double> last;
  std::vector<long> best;
  for (size_t begin = 0; begin + 1 < c.ids.size(); begin += kBatch) {
    const size_t end = std::min(begin + kBatch, c.ids.size() - 1);
    if (!Decode(context, c, begin, end)) return false;
    for (size_t i = begin; i < end; ++i) {
      const float* logits = llama_get_logits_ith(context, static_cast<int32_t>(i - begin));
      if (i + 1 < c.prompt) nll += LogSumExp(logits, vocabulary) - logits[c.ids[i + 1]];
      if (i + 1 == c.prompt) {
        last.push_back(LogSumExp(logits, vocabulary));
        for (const llama_token token : c.tokens) last.push_back(logits[token]);
      }
      if (i + 1 >= c.prompt) best.push_back(std::max_element(logits, logits + vocabulary) - logits);
    }
  }
  std::printf("%.9f", c.prompt > 1 ? nll / static_cast<double>(c.prompt - 1) : 0);
  for (const double value : last) std::printf(" %.6f", value);
  for (const long token : best) std::printf(" %ld", token);
  std::printf("\n");
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  llama_backend_init();
  llama_model* model = llama_model_load_from_file(argv[1], llama_model_default_params());
  if (model == nullptr) return 1;
  llama_context_params params = llama_context_default_params();
  params.n_ctx = kContext;
  params.n_batch = kBatch;
  params.n_ubatch = kBatch;
  params.n_threads = 1;
  params.n_threads_batch = 1;
  params.flash_attn_type =
      std::atoi(argv[2]) != 0 ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
  llama_context* context = llama_init_from_model(model, params);
  if (context == nullptr) return 1;
  const int vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model));
  Case c;
  while (std::cin >> c.prompt) {
    if (!ReadList(c.ids) || !ReadList(c.tokens) || !Run(context, c, vocabulary)) return 1;
  }
  llama_free(context);
  llama_model_free(model);
  return 0;
}
