// The same request gives the same tokens and log probabilities, bit for bit, however the work is split.
#include <gtest/gtest.h>

#include <random>

#include "tests/integration/expect_same.h"
#include "tests/integration/in_memory_ring.h"

namespace millrace::testing {
namespace {

// Three requests that differ in all that changes how a token is chosen.
std::vector<SequenceRequest> Subjects() {
  std::mt19937 rng(3);
  std::vector<SequenceRequest> subjects(3);
  for (size_t i = 0; i < subjects.size(); ++i) {
    SequenceRequest& request = subjects[i];
    request.id = SequenceId(i + 1);
    const size_t length = i == 0 ? 1 : 40 + 33 * i;
    for (size_t t = 0; t < length; ++t) request.prompt.push_back(3 + rng() % 256);
    request.max_tokens = 12;
    request.ignore_eos = true;
    request.sampling.logprobs = 3;
    request.prompt_logprobs = 2;
  }
  subjects[0].sampling.temperature = 0;
  subjects[1].sampling.temperature = 0;
  subjects[2].sampling.temperature = 0.9f;
  subjects[2].sampling.seed = 42;
  subjects[2].sampling.top_k = 20;
  subjects[2].sampling.top_p = 0.95f;
  subjects[2].sampling.repetition_penalty = 1.3f;
  subjects[2].sampling.frequency_penalty = 0.5f;
  subjects[2].min_tokens = 4;
  subjects[2].ignore_eos = false;
  return subjects;
}

std::vector<Arrival> Alone(const SequenceRequest& request) {
  return {{0, request}};
}

// The subjects in the midst of 16 others that come and go at their own times.
std::vector<Arrival> AmongOthers() {
  std::mt19937 rng(11);
  std::vector<Arrival> arrivals;
  std::vector<SequenceRequest> subjects = Subjects();
  for (uint64_t i = 0; i < 16; ++i) {
    SequenceRequest other;
    other.id = SequenceId(100 + i);
    for (size_t t = 0; t < 1 + rng() % 60; ++t) other.prompt.push_back(3 + rng() % 256);
    other.max_tokens = 1 + rng() % 20;
    other.sampling.temperature = 1;
    other.sampling.seed = i;
    arrivals.push_back({i, std::move(other)});
    if (i % 5 == 2) arrivals.push_back({i, subjects[i / 5]});
  }
  return arrivals;
}

struct Shape {
  const char* name;
  TinyLlamaOptions model;
  kernels::CpuBackendOptions backend = {};
  KvType kv_type = KvType::kF32;
};

std::vector<Shape> Shapes() {
  TinyLlamaOptions plain;
  plain.layers = 5;
  TinyLlamaOptions quantised = plain;
  quantised.type = TensorType::kQ4_1;
  quantised.heads = 9;
  quantised.kv_heads = 3;
  quantised.head_size = 32;
  quantised.hidden = 96;
  TinyLlamaOptions untied = plain;
  untied.type = TensorType::kQ8_0;
  untied.tied = false;
  untied.kv_heads = 1;
  untied.rope_freqs = true;
  untied.seed = 5;
  const kernels::CpuBackendOptions rounded = {.activations = kernels::ActivationType::kInt8};
  kernels::CpuBackendOptions two_threads = rounded;
  two_threads.threads = 2;
  return {{"F32", plain},
          {"Q4_1", quantised},
          {"Q8_0_untied", untied},
          {"Q4_1_Int8KvF16", quantised, rounded, KvType::kF16},
          {"Q8_0_untied_Int8KvInt8", untied, rounded, KvType::kI8},
          {"Q4_1_Int8KvF16_TwoThreads", quantised, two_threads, KvType::kF16}};
}

class RingEquivalenceTest : public ::testing::TestWithParam<Shape> {
 protected:
  // What each subject gives alone, on one stage of one thread, in one chunk.
  void SetUp() override {
    for (const SequenceRequest& subject : Subjects()) {
      InMemoryRingOptions options = Options({{5}, 128, 1, 512});
      options.backend.threads = 1;
      InMemoryRing ring(GetParam().model, options);
      expected_[subject.id] = ring.Run(Alone(subject)).at(subject.id);
      ASSERT_TRUE(expected_[subject.id].status.ok());
      ASSERT_FALSE(expected_[subject.id].tokens.empty());
      ASSERT_EQ(expected_[subject.id].prompt_logprobs.size(), subject.prompt.size() - 1);
    }
  }

  static InMemoryRingOptions Options(InMemoryRingOptions options) {
    options.backend = GetParam().backend;
    options.kv_type = GetParam().kv_type;
    return options;
  }

  void ExpectEqual(const InMemoryRingOptions& layout, bool among_others) {
    const InMemoryRingOptions options = Options(layout);
    if (among_others) {
      InMemoryRing ring(GetParam().model, options);
      const Outcomes outcomes = ring.Run(AmongOthers());
      EXPECT_EQ(outcomes.size(), 19u);
      EXPECT_GE(ring.most_in_flight(), options.layers.size());
      for (const auto& [id, expected] : expected_) ExpectSame(expected, outcomes.at(id));
      return;
    }
    for (const SequenceRequest& subject : Subjects()) {
      InMemoryRing ring(GetParam().model, options);
      ExpectSame(expected_.at(subject.id), ring.Run(Alone(subject)).at(subject.id));
    }
  }

  Outcomes expected_;
};

TEST_P(RingEquivalenceTest, AloneInAnyNumberOfStages) {
  for (const auto& layers : std::vector<std::vector<uint32_t>>{{2, 3}, {1, 1, 3}, {1, 1, 1, 1, 1}}) {
    SCOPED_TRACE(layers.size());
    ExpectEqual({layers, 64, 0, 512}, false);
  }
}

TEST_P(RingEquivalenceTest, AmongOthersInAnyNumberOfStages) {
  for (const auto& layers : std::vector<std::vector<uint32_t>>{{5}, {4, 1}, {2, 1, 2}, {1, 1, 1, 1, 1}}) {
    SCOPED_TRACE(layers.size());
    ExpectEqual({layers, 64, 0, 512}, true);
  }
}

TEST_P(RingEquivalenceTest, WhateverTheChunkSize) {
  for (const uint32_t max_rows : {1u, 16u, 17u, 128u}) {
    SCOPED_TRACE(max_rows);
    ExpectEqual({{3, 2}, max_rows, 4, 512}, true);
  }
}

TEST_P(RingEquivalenceTest, WhenKvBlocksRunOutAndSequencesAreRecomputed) {
  InMemoryRing ring(GetParam().model, Options({{3, 2}, 64, 3, 12}));
  const Outcomes outcomes = ring.Run(AmongOthers());
  EXPECT_GT(ring.preemptions(), 0u);
  for (const auto& [id, expected] : expected_) ExpectSame(expected, outcomes.at(id));
}

INSTANTIATE_TEST_SUITE_P(Shapes, RingEquivalenceTest, ::testing::ValuesIn(Shapes()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace millrace::testing
