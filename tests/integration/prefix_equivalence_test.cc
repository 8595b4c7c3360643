// What is found in the prefix cache changes no token and no log probability.
#include <gtest/gtest.h>

#include <random>

#include "tests/integration/expect_same.h"
#include "tests/integration/in_memory_ring.h"

namespace millrace::testing {
namespace {

std::vector<TokenId> SomeTokens(uint32_t seed, size_t count) {
  std::mt19937 rng(seed);
  std::vector<TokenId> tokens;
  while (tokens.size() < count) tokens.push_back(3 + rng() % 256);
  return tokens;
}

SequenceRequest Request(uint64_t id, std::vector<TokenId> prompt, float temperature) {
  SequenceRequest request;
  request.id = SequenceId(id);
  request.prompt = std::move(prompt);
  request.max_tokens = 20;
  request.ignore_eos = true;
  request.sampling.logprobs = 3;
  request.sampling.temperature = temperature;
  request.sampling.seed = id;
  return request;
}

// Prompts that begin the same in all the ways that matter.
std::vector<SequenceRequest> Requests() {
  const std::vector<TokenId> base = SomeTokens(1, 150);
  std::vector<SequenceRequest> requests;
  requests.push_back(Request(1, base, 0));
  requests.push_back(Request(2, base, 0));                                // the same
  requests.push_back(Request(3, {base.begin(), base.begin() + 128}, 1));  // full blocks to its end
  std::vector<TokenId> forked(base.begin(), base.begin() + 70);
  const std::vector<TokenId> tail = SomeTokens(2, 60);
  forked.insert(forked.end(), tail.begin(), tail.end());
  requests.push_back(Request(4, forked, 0.8f));
  requests.push_back(Request(5, base, 0));
  requests.back().cache_salt = "other";
  requests.push_back(Request(6, base, 0));
  requests.back().prompt_logprobs = 2;
  requests.push_back(Request(7, forked, 0));
  requests.back().sampling.repetition_penalty = 1.2f;
  return requests;
}

// What stages compute with.
struct Path {
  const char* name;
  TensorType weights;
  kernels::ActivationType activations;
  KvType kv_type;
};

// One after another, or as the ring goes on.
std::vector<Arrival> Arrivals(const std::vector<SequenceRequest>& requests, uint64_t microbatches_between) {
  std::vector<Arrival> arrivals;
  for (size_t i = 0; i < requests.size(); ++i) arrivals.push_back({i * microbatches_between, requests[i]});
  return arrivals;
}
constexpr uint64_t kOneAfterAnother = 1000000;

class PrefixEquivalenceTest : public ::testing::TestWithParam<Path> {
 protected:
  static TinyLlamaOptions Model() {
    TinyLlamaOptions model;
    model.layers = 3;
    model.type = GetParam().weights;
    return model;
  }
  static InMemoryRingOptions Options(InMemoryRingOptions options) {
    options.backend.activations = GetParam().activations;
    options.kv_type = GetParam().kv_type;
    return options;
  }
  static InMemoryRingOptions WithoutCache() {
    InMemoryRingOptions options = Options({{3}, 128, 1, 512});
    options.prefix_cache = false;
    return options;
  }

  // Each alone, with nothing to find.
  void SetUp() override {
    requests_ = Requests();
    InMemoryRing ring(Model(), WithoutCache());
    expected_ = ring.Run(Arrivals(requests_, kOneAfterAnother));
    for (const auto& [id, outcome] : expected_) ASSERT_EQ(outcome.cached_prompt_tokens, 0u);
  }

  std::vector<SequenceRequest> requests_;
  Outcomes expected_;
};
INSTANTIATE_TEST_SUITE_P(
    Paths, PrefixEquivalenceTest,
    ::testing::Values(Path{"F32", TensorType::kF32, kernels::ActivationType::kF32, KvType::kF32},
                      Path{"Int8KvF16", TensorType::kQ8_0, kernels::ActivationType::kInt8, KvType::kF16},
                      Path{"Int8KvInt8", TensorType::kQ4_1, kernels::ActivationType::kInt8, KvType::kI8}),
    [](const auto& info) { return info.param.name; });

TEST_P(PrefixEquivalenceTest, OneAfterAnotherWithEverySizeOfBlocks) {
  for (const uint32_t block : {16u, 32u, 64u}) {
    SCOPED_TRACE(block);
    InMemoryRingOptions options = Options({{2, 1}, 32, 0, 8192 / block});
    options.block_tokens = block;
    InMemoryRing ring(Model(), options);
    const Outcomes outcomes = ring.Run(Arrivals(requests_, kOneAfterAnother));
    for (const auto& [id, expected] : expected_) ExpectSame(expected, outcomes.at(id));
    const auto full = [block](uint32_t tokens) { return tokens / block * block; };
    const std::map<uint64_t, uint32_t> cached = {{1, 0}, {2, full(149)}, {3, full(127)}, {4, full(70)},
                                                 {5, 0}, {6, 0},         {7, full(129)}};
    for (const auto& [id, tokens] : cached) {
      EXPECT_EQ(outcomes.at(SequenceId(id)).cached_prompt_tokens, tokens) << id;
    }
  }
}

TEST_P(PrefixEquivalenceTest, TheNextTurnFindsPromptAndAnswer) {
  InMemoryRing ring(Model(), Options({{2, 1}, 64, 0, 512}));
  std::vector<TokenId> turn = requests_[0].prompt;
  const std::vector<TokenId>& answer = expected_.at(SequenceId(1)).tokens;
  turn.insert(turn.end(), answer.begin(), answer.end());
  turn.insert(turn.end(), {5, 6, 7});
  const SequenceRequest next = Request(9, turn, 0);
  const Outcomes outcomes = ring.Run(Arrivals({requests_[0], next}, kOneAfterAnother));
  // 150 + 20 tokens; the last one generated was never computed.
  EXPECT_EQ(outcomes.at(SequenceId(9)).cached_prompt_tokens, 160u);
  InMemoryRing plain(Model(), WithoutCache());
  ExpectSame(plain.Run({{0, next}}).at(SequenceId(9)), outcomes.at(SequenceId(9)));
}

TEST_P(PrefixEquivalenceTest, WhileOthersAreStillComputingTheSame) {
  for (const uint32_t max_rows : {16u, 17u, 128u}) {
    for (const uint64_t between : {0u, 1u, 3u}) {
      SCOPED_TRACE(::testing::Message() << max_rows << " rows, " << between << " microbatches between");
      InMemoryRing ring(Model(), Options({{1, 1, 1}, max_rows, 5, 512}));
      const Outcomes outcomes = ring.Run(Arrivals(requests_, between));
      for (const auto& [id, expected] : expected_) ExpectSame(expected, outcomes.at(id));
    }
  }
}

TEST_P(PrefixEquivalenceTest, WhenKvBlocksRunOutAndSequencesAreRecomputed) {
  // Each with an end of its own: what they share is not enough.
  for (size_t i = 0; i < requests_.size(); ++i) requests_[i].max_tokens = 60;
  InMemoryRing plain(Model(), WithoutCache());
  const Outcomes expected = plain.Run(Arrivals(requests_, kOneAfterAnother));
  InMemoryRing ring(Model(), Options({{2, 1}, 64, 4, 28}));
  const Outcomes outcomes = ring.Run(Arrivals(requests_, 1));
  EXPECT_GT(ring.preemptions(), 0u);
  for (const auto& [id, outcome] : expected) ExpectSame(outcome, outcomes.at(id));
}

}  // namespace
}  // namespace millrace::testing
