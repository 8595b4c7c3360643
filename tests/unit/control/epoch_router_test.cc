#include "worker/control/epoch_router.h"

#include <memory>
#include <utility>

#include "gtest/gtest.h"

namespace millrace {
namespace {

class EpochRouterTest : public ::testing::Test {
 protected:
  static v1::Plan Plan(uint64_t epoch, uint64_t id, int rows = 1) {
    v1::Plan plan;
    plan.set_epoch(epoch);
    plan.set_microbatch_id(id);
    v1::PlanSegment* segment = plan.add_segments();
    for (int i = 0; i < rows; ++i) segment->add_token_ids(i);
    return plan;
  }
  static HopMessage Activations(uint64_t epoch, uint64_t id) {
    HopMessage message;
    message.epoch = Epoch(epoch);
    message.microbatch = MicrobatchId(id);
    return message;
  }

  std::shared_ptr<StageInbox> inbox_ = std::make_shared<StageInbox>(2);
  EpochRouter router_;
};

TEST_F(EpochRouterTest, BringsBothHalvesToTheInbox) {
  router_.Open(Epoch(5), 4, inbox_);
  ASSERT_TRUE(router_.DeliverPlan(Plan(5, 1, 4)).ok());
  ASSERT_TRUE(router_.DeliverActivations(Activations(5, 2)));
  const auto plan = inbox_->Pop();
  ASSERT_TRUE(plan.has_value());
  EXPECT_GT(plan->arrived_ns, 0);
  ASSERT_TRUE(std::holds_alternative<StageBatch>(plan->content));
  EXPECT_EQ(std::get<StageBatch>(plan->content).id, MicrobatchId(1));
  EXPECT_EQ(std::get<StageBatch>(plan->content).rows(), 4u);
  const auto activations = inbox_->Pop();
  ASSERT_TRUE(std::holds_alternative<HopMessage>(activations->content));
  EXPECT_EQ(std::get<HopMessage>(activations->content).microbatch, MicrobatchId(2));
  EXPECT_GE(activations->arrived_ns, plan->arrived_ns);
}

TEST_F(EpochRouterTest, DropsWhatIsStale) {
  EXPECT_TRUE(router_.DeliverPlan(Plan(5, 1)).ok());
  EXPECT_TRUE(router_.DeliverActivations(Activations(5, 1)));
  router_.Open(Epoch(5), 4, inbox_);
  for (const uint64_t epoch : {0, 4, 6}) {
    EXPECT_TRUE(router_.DeliverPlan(Plan(epoch, 1)).ok());
    EXPECT_TRUE(router_.DeliverPlan(Plan(epoch, 1, 100)).ok());
    EXPECT_TRUE(router_.DeliverActivations(Activations(epoch, 1)));
  }
  router_.Close();
  EXPECT_TRUE(router_.DeliverPlan(Plan(5, 1)).ok());
  EXPECT_TRUE(router_.DeliverActivations(Activations(5, 1)));
  EXPECT_TRUE(router_.DeliverPlan(Plan(0, 1)).ok());
  EXPECT_EQ(inbox_->size(), 0u);
}

TEST_F(EpochRouterTest, SendsEachEpochToItsOwnInbox) {
  const auto next = std::make_shared<StageInbox>(2);
  router_.Open(Epoch(5), 4, inbox_);
  router_.Open(Epoch(6), 4, next);
  EXPECT_TRUE(router_.DeliverActivations(Activations(5, 1)));
  EXPECT_TRUE(router_.DeliverActivations(Activations(6, 1)));
  EXPECT_EQ(inbox_->size(), 0u);
  EXPECT_EQ(next->size(), 1u);
}

TEST_F(EpochRouterTest, RefusesMalformedPlans) {
  router_.Open(Epoch(5), 4, inbox_);
  EXPECT_EQ(router_.DeliverPlan(Plan(5, 1, 5)).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(router_.DeliverPlan(Plan(5, 1, 0)).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(inbox_->size(), 0u);
}

TEST_F(EpochRouterTest, SaysWhenTheInboxIsFull) {
  router_.Open(Epoch(5), 4, inbox_);
  ASSERT_TRUE(router_.DeliverPlan(Plan(5, 1)).ok());
  ASSERT_TRUE(router_.DeliverPlan(Plan(5, 2)).ok());
  EXPECT_EQ(router_.DeliverPlan(Plan(5, 3)).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_FALSE(router_.DeliverActivations(Activations(5, 1)));
}

// The epoch ends while something is on its way: nobody's fault.
TEST_F(EpochRouterTest, DropsWhatComesToAClosedInbox) {
  router_.Open(Epoch(5), 4, inbox_);
  inbox_->Close();
  EXPECT_TRUE(router_.DeliverPlan(Plan(5, 1)).ok());
  EXPECT_TRUE(router_.DeliverActivations(Activations(5, 1)));
}

}  // namespace
}  // namespace millrace
