#include "coordinator/planner/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace millrace {
namespace {

using ::testing::HasSubstr;

PlanRequest Request(const char* shape, size_t workers, uint64_t memory) {
  PlanRequest request;
  request.shape = *NamedShape(shape);
  request.context_tokens = std::min(4096u, request.shape.context_tokens);
  for (size_t i = 0; i < workers; ++i) {
    PlannedWorker worker;
    worker.name = "w";
    worker.speed = DeviceSpeed{312e12, 2.0e12, 50e-6};
    worker.memory_bytes = memory;
    request.cluster.workers.push_back(worker);
  }
  return request;
}

const PlanChoice* Find(const Plan& plan, uint32_t stages, uint32_t ways) {
  for (const PlanChoice& choice : plan.choices) {
    if (choice.stages == stages && choice.tensor_parallel == ways) return &choice;
  }
  return nullptr;
}

TEST(PlanTest, Llama2HasTheTextbooksFigures) {
  const auto plan = MakePlan(Request("llama-2-7b", 2, 80000000000));
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_NEAR(static_cast<double>(plan->weight_bytes), 13.48e9, 0.01e9);
  EXPECT_EQ(plan->kv_bytes_per_token * 4096, uint64_t{2} << 30);
  const PlanChoice* two = Find(*plan, 2, 1);
  ASSERT_NE(two, nullptr);
  ASSERT_TRUE(two->fits);
  ASSERT_EQ(two->placement.size(), 2u);
  EXPECT_EQ(two->placement[0].layers.count + two->placement[1].layers.count, 32u);
  EXPECT_EQ(two->placement[0].weight_bytes + two->placement[1].weight_bytes, plan->weight_bytes);
  EXPECT_GT(two->decode_tokens_per_second, 0);
  EXPECT_GT(two->prefill_tokens_per_second, two->decode_tokens_per_second);
  EXPECT_GT(two->first_token_seconds, 0);
  EXPECT_GT(two->inter_token_seconds, 0);
  EXPECT_NE(Find(*plan, 1, 1), nullptr);
  EXPECT_NE(Find(*plan, 1, 2), nullptr);
}

TEST(PlanTest, BestComesFirstAndWhatDoesNotFitLast) {
  const auto plan = MakePlan(Request("llama-2-7b", 4, 12000000000));
  ASSERT_TRUE(plan.ok()) << plan.status();
  for (size_t i = 1; i < plan->choices.size(); ++i) {
    const PlanChoice& before = plan->choices[i - 1];
    const PlanChoice& after = plan->choices[i];
    EXPECT_GE(before.fits, after.fits);
    if (after.fits) {
      EXPECT_GE(before.decode_tokens_per_second, after.decode_tokens_per_second);
    }
  }
  const PlanChoice* one = Find(*plan, 1, 1);
  ASSERT_NE(one, nullptr);
  EXPECT_FALSE(one->fits);
  EXPECT_THAT(one->why_not, HasSubstr("needs"));
}

TEST(PlanTest, MemoryTellsHowManySequencesAndHowLong) {
  const auto plan = MakePlan(Request("llama-2-7b", 1, 20000000000));
  ASSERT_TRUE(plan.ok());
  const PlanChoice& choice = plan->choices[0];
  const PlanStage& stage = choice.placement[0];
  const uint64_t tokens = (20000000000 - stage.weight_bytes - stage.activation_bytes) / 524288;
  EXPECT_EQ(choice.max_sequences, tokens / 4096);
  EXPECT_EQ(choice.max_context, 4096u);
  EXPECT_EQ(choice.running, tokens / 4096);
}

TEST(PlanTest, ARunningClustersPlacementIsTakenAsItIs) {
  PlanRequest request = Request("smollm2-135m", 2, 0);
  request.fixed = {{0, 7}, {7, 23}};
  const auto plan = MakePlan(request);
  ASSERT_TRUE(plan.ok());
  ASSERT_EQ(plan->choices.size(), 1u);
  EXPECT_EQ(plan->choices[0].placement[0].layers, (LayerRange{0, 7}));
  EXPECT_GT(plan->choices[0].decode.stages[0].BubbleRatio(), 0.4);
}

TEST(PlanTest, AModelThatFitsNowhereSaysByHowMuchAndWhatWouldDo) {
  const absl::Status status = MakePlan(Request("llama-2-7b", 2, 4000000000)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("needs 7."));
  EXPECT_THAT(std::string(status.message()), HasSubstr("its worker has 3.7 GiB"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("5 workers of 3.7 GiB would do"));
  EXPECT_THAT(std::string(MakePlan(Request("llama-2-7b", 2, 100000000)).status().message()),
              HasSubstr("no number of such workers"));
}

TEST(PlanTest, RefusesWhatCannotBePlanned) {
  PlanRequest request = Request("llama-2-7b", 0, 0);
  EXPECT_EQ(MakePlan(request).status().code(), absl::StatusCode::kInvalidArgument);
  request = Request("llama-2-7b", 1, 0);
  request.context_tokens = 4097;
  EXPECT_EQ(MakePlan(request).status().code(), absl::StatusCode::kInvalidArgument);
  request.context_tokens = 128;
  EXPECT_EQ(MakePlan(request).status().code(), absl::StatusCode::kInvalidArgument);
  request.context_tokens = 129;
  EXPECT_TRUE(MakePlan(request).ok());
  request.batch = 0;
  EXPECT_EQ(MakePlan(request).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace millrace
