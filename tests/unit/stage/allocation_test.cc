// Counts what a step allocates: the program's operator new is replaced here.
#include <cstdlib>
#include <new>

#include "gtest/gtest.h"
#include "tests/testing/tiny_llama.h"
#include "tests/unit/stage/stage_ring.h"

namespace {

thread_local size_t largest_allocation = 0;

void* Allocate(size_t bytes) {
  if (bytes > largest_allocation) largest_allocation = bytes;
  void* memory = std::malloc(bytes);
  if (memory == nullptr) std::abort();
  return memory;
}

}  // namespace

void* operator new(size_t bytes) {
  return Allocate(bytes);
}
void* operator new[](size_t bytes) {
  return Allocate(bytes);
}
void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  return Allocate(bytes);
}
void* operator new[](size_t bytes, const std::nothrow_t&) noexcept {
  return Allocate(bytes);
}
void* operator new(size_t bytes, std::align_val_t alignment) {
  if (bytes > largest_allocation) largest_allocation = bytes;
  const size_t step = static_cast<size_t>(alignment);
  void* memory = std::aligned_alloc(step, (bytes + step - 1) / step * step);
  if (memory == nullptr) std::abort();
  return memory;
}
void operator delete(void* memory, std::align_val_t) noexcept {
  std::free(memory);
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete[](void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, size_t) noexcept {
  std::free(memory);
}
void operator delete[](void* memory, size_t) noexcept {
  std::free(memory);
}

namespace millrace::testing {
namespace {

TEST(AllocationTest, AStepAllocatesNothingLarge) {
  TinyLlamaOptions options;
  options.vocabulary = 4000;
  options.context = 2048;
  const TestModel model = TestModel::FromBytes(BuildTinyLlama(options), "auto");
  StageRing ring(model, {.max_rows = 512, .num_blocks = 64});
  TestSequence sequence{1, RandomTokens(512, 4000, 1), Blocks(0, 512)};
  StageSegment segment = sequence.Segment(0, 512);
  segment.sampling.emplace().top_p = 0.9f;
  segment.sampling->presence_penalty = 1;
  segment.sampling->logprobs = 32;
  segment.history = segment.token_ids;
  segment.prompt_logprobs = 1;
  const StageBatch batch = BatchOf({segment});

  StageModel& stage = ring.stage(0);
  largest_allocation = 0;
  const std::shared_ptr<PooledBuffer> residual = *stage.Run(batch, nullptr, ring.cache(0));
  EXPECT_LE(largest_allocation, 1024u) << "the layers work in what Create allocated";
  const std::vector<SequenceResult> results = *stage.Sample(batch, *residual);
  EXPECT_EQ(results[0].prompt_logprobs.size(), 511u);
  // Sampling holds its answer and a list of the rows it needs, and no activations, logits or vocabulary.
  EXPECT_LT(largest_allocation, 512 * 2 * sizeof(TokenLogprobs));
  EXPECT_GT(largest_allocation, 0u) << "the count counts";
}

}  // namespace
}  // namespace millrace::testing
