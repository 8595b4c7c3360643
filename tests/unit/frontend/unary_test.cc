// Tokenize, Detokenize and the Control service.
#include <algorithm>
#include <string>
#include <thread>

#include "gmock/gmock.h"
#include "tests/unit/frontend/frontend_fixture.h"

namespace millrace {
namespace {

using testing::HasSubstr;

class UnaryTest : public FrontendTest {
 protected:
  grpc::Status Tokenize(const v1::TokenizeRequest& request) {
    grpc::ClientContext context;
    return inference_->Tokenize(&context, request, &tokenized_);
  }
  grpc::Status Detokenize(const v1::DetokenizeRequest& request) {
    grpc::ClientContext context;
    return inference_->Detokenize(&context, request, &detokenized_);
  }

  v1::TokenizeResponse tokenized_;
  v1::DetokenizeResponse detokenized_;
};

TEST_F(UnaryTest, TokenizesSmallAndLargeTexts) {
  StartServer();
  for (const size_t repeats : {size_t{1}, size_t{20000}}) {
    v1::TokenizeRequest request;
    for (size_t i = 0; i < repeats; ++i) request.mutable_text()->append("hello world \xC3\xA9<|im_end|>");
    ASSERT_TRUE(Tokenize(request).ok());
    EXPECT_EQ(tokenized_.text(), request.text());
    const std::vector<TokenId> ids(tokenized_.token_ids().begin(), tokenized_.token_ids().end());
    EXPECT_EQ(ids, tokenizer_->Encode(request.text(), EncodeOptions()));
    EXPECT_EQ(ids.back(), kTinyImEnd);
    ASSERT_EQ(tokenized_.tokens_size(), tokenized_.token_ids_size());
    std::string joined;
    for (const std::string& bytes : tokenized_.tokens()) joined += bytes;
    EXPECT_EQ(joined, request.text());
  }
  v1::TokenizeRequest plain;
  plain.set_text("<|im_end|>");
  plain.set_parse_special(false);
  ASSERT_TRUE(Tokenize(plain).ok());
  EXPECT_GT(tokenized_.token_ids_size(), 1);
}

TEST_F(UnaryTest, TokenizesChatsAsGenerateDoes) {
  StartServer();
  v1::TokenizeRequest request;
  v1::ChatMessage* message = request.mutable_chat()->add_messages();
  message->set_role("user");
  message->set_content("<|im_end|>");
  ASSERT_TRUE(Tokenize(request).ok());
  EXPECT_EQ(tokenized_.text(), "<|im_start|>user\n<|im_end|><|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(std::count(tokenized_.token_ids().begin(), tokenized_.token_ids().end(), kTinyImEnd), 1);
  v1::GenerateRequest generate;
  *generate.mutable_chat() = request.chat();
  const auto call = Generate(generate);
  EXPECT_THAT(engine_.NextSubmit().prompt, testing::ElementsAreArray(tokenized_.token_ids()));
}

TEST_F(UnaryTest, RefusesWhatCannotBeTokenized) {
  StartServer();
  const grpc::Status none = Tokenize(v1::TokenizeRequest());
  EXPECT_EQ(none.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(DetailFrom(none).reason(), "NO_INPUT");
  v1::TokenizeRequest role;
  role.mutable_chat()->add_messages()->set_role("root");
  EXPECT_EQ(DetailFrom(Tokenize(role)).reason(), "UNKNOWN_ROLE");
  v1::TokenizeRequest large;
  large.set_text(std::string((1 << 20) + 1, 'x'));
  const grpc::Status too_large = Tokenize(large);
  EXPECT_EQ(too_large.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(DetailFrom(too_large).reason(), "INPUT_TOO_LARGE");
  v1::TokenizeRequest bytes;
  bytes.set_text("\xFF");
  EXPECT_EQ(DetailFrom(Tokenize(bytes)).reason(), "MALFORMED_REQUEST");
}

TEST_F(UnaryTest, DetokenizesToBytesAndToText) {
  StartServer();
  v1::DetokenizeRequest request;
  request.add_token_ids(ByteToken('a'));
  request.add_token_ids(kTinyImEnd);
  request.add_token_ids(ByteToken('\xFF'));
  ASSERT_TRUE(Detokenize(request).ok());
  EXPECT_EQ(detokenized_.data(), "a<|im_end|>\xFF");
  EXPECT_EQ(detokenized_.text(), "a<|im_end|>\xEF\xBF\xBD");
  request.set_skip_special(true);
  ASSERT_TRUE(Detokenize(request).ok());
  EXPECT_EQ(detokenized_.data(), "a\xFF");
  v1::DetokenizeRequest many;
  for (int i = 0; i < 100000; ++i) many.add_token_ids(ByteToken('z'));
  ASSERT_TRUE(Detokenize(many).ok());
  EXPECT_EQ(detokenized_.text(), std::string(100000, 'z'));
}

TEST_F(UnaryTest, RefusesWhatCannotBeDetokenized) {
  StartServer();
  v1::DetokenizeRequest request;
  request.add_token_ids(1);
  request.add_token_ids(320);
  const grpc::Status status = Detokenize(request);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(DetailFrom(status).reason(), "TOKEN_OUT_OF_RANGE");
  EXPECT_THAT(status.error_message(), HasSubstr("token_ids[1] is token 320; the vocabulary has 320"));
  v1::DetokenizeRequest many;
  many.mutable_token_ids()->Resize((1 << 18) + 1, 5);
  EXPECT_EQ(Detokenize(many).error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(UnaryTest, QueuedUnaryCallsEndWhenTheFrontendStops) {
  StartServer();
  engine_.HoldSubmits();
  const auto blocker = Generate(TextRequest("hello"));
  engine_.NextSubmitting();
  v1::TokenizeRequest large;
  large.set_text(std::string(100000, 'x'));
  grpc::Status status;
  std::thread client([&] { status = Tokenize(large); });
  WaitForQueuedJobs(1);
  frontend_->BeginStop();
  std::thread stopper([&] { frontend_->Stop(); });
  engine_.Release();
  stopper.join();
  client.join();
  // Stop may come before or after the text thread takes it; either way the call ends.
  EXPECT_TRUE(status.ok() || DetailFrom(status).reason() == "SHUTTING_DOWN") << status.error_message();
}

TEST_F(UnaryTest, TellsAboutTheServer) {
  PipelineSnapshot snapshot;
  snapshot.state = PipelineState::kLoading;
  snapshot.detail = "worker 2 loads layers 10 to 19";
  engine_.set_snapshot(snapshot);
  StartServer();
  v1::GetServerInfoResponse info;
  grpc::ClientContext context;
  ASSERT_TRUE(control_->GetServerInfo(&context, v1::GetServerInfoRequest(), &info).ok());
  EXPECT_EQ(info.version(), "1.2.3");
  EXPECT_EQ(info.api_revision(), 4u);
  EXPECT_EQ(info.state(), v1::GetServerInfoResponse::STATE_LOADING);
  EXPECT_EQ(info.state_detail(), snapshot.detail);
  EXPECT_TRUE(info.has_uptime());
  EXPECT_EQ(info.max_queued_requests(), 1000u);
  EXPECT_EQ(info.max_running_requests(), 200u);
  EXPECT_EQ(info.max_input_bytes(), 1u << 20);
}

TEST_F(UnaryTest, TellsAboutTheModel) {
  StartServer();
  v1::GetModelInfoResponse info;
  grpc::ClientContext context;
  ASSERT_TRUE(control_->GetModelInfo(&context, v1::GetModelInfoRequest(), &info).ok());
  EXPECT_EQ(info.name(), "tiny");
  EXPECT_EQ(info.architecture(), "llama");
  EXPECT_EQ(info.fingerprint(), "f1f2");
  EXPECT_EQ(info.context_tokens(), 512u);
  EXPECT_EQ(info.vocabulary_size(), 320u);
  EXPECT_EQ(info.layers(), 3u);
  EXPECT_EQ(info.hidden_size(), 64u);
  EXPECT_EQ(info.attention_heads(), 4u);
  EXPECT_EQ(info.kv_heads(), 2u);
  EXPECT_EQ(info.head_size(), 16u);
  EXPECT_EQ(info.weight_bytes(), 12345u);
  EXPECT_EQ(info.kv_bytes_per_token(), 2u * 3 * 2 * 16 * 4);
  EXPECT_EQ(info.bos_token_id(), kTinyImStart);
  EXPECT_THAT(info.eos_token_ids(), testing::Contains(kTinyImEnd));
  EXPECT_FALSE(info.adds_bos());
  EXPECT_TRUE(info.has_chat_template());
}

TEST_F(UnaryTest, TellsAboutTheLoad) {
  PipelineSnapshot snapshot;
  snapshot.epoch = 4;
  snapshot.active = absl::Seconds(10);
  snapshot.load.running = 3;
  snapshot.load.waiting = 2;
  snapshot.load.in_flight = 5;
  snapshot.load.blocks_total = 100;
  snapshot.load.blocks_used = 40;
  snapshot.load.block_tokens = 16;
  snapshot.load.prompt_tokens = 1000;
  snapshot.load.output_tokens = 500;
  snapshot.load.finished = 7;
  snapshot.load.failed = 1;
  snapshot.load.preemptions = 6;
  snapshot.load.slots = 9;
  snapshot.load.cost_errors = {0.5, 0.125};
  snapshot.stages.resize(2);
  snapshot.stages[1].worker = "2@10.0.0.2:7000";
  snapshot.stages[1].first_layer = 2;
  snapshot.stages[1].num_layers = 1;
  snapshot.stages[1].weight_bytes = 11;
  snapshot.stages[1].kv_bytes = 12;
  snapshot.stages[1].activation_bytes = 13;
  snapshot.stages[1].numeric_class = "cpu/int8/kv-f16";
  snapshot.stages[1].kernels = "cpu/avx512";
  snapshot.stages[1].threads = 3;
  snapshot.stages[1].shards = {{5, 4, 3}, {6, 8, 9}};
  snapshot.stages[1].total.busy = absl::Milliseconds(7500);
  snapshot.stages[1].total.microbatches = 14;
  snapshot.stages[1].total.rows = 15;
  engine_.set_snapshot(snapshot);
  StartServer();
  v1::GetLoadResponse load;
  grpc::ClientContext context;
  ASSERT_TRUE(control_->GetLoad(&context, v1::GetLoadRequest(), &load).ok());
  EXPECT_EQ(load.running_requests(), 3u);
  EXPECT_EQ(load.queued_requests(), 2u);
  EXPECT_EQ(load.microbatches_in_flight(), 5u);
  EXPECT_EQ(load.kv_blocks_total(), 100u);
  EXPECT_EQ(load.kv_blocks_used(), 40u);
  EXPECT_EQ(load.kv_block_tokens(), 16u);
  EXPECT_EQ(load.prompt_tokens_total(), 1000u);
  EXPECT_EQ(load.generated_tokens_total(), 500u);
  EXPECT_EQ(load.requests_finished_total(), 7u);
  EXPECT_EQ(load.requests_failed_total(), 1u);
  EXPECT_EQ(load.preemptions_total(), 6u);
  EXPECT_EQ(load.epoch(), 4u);
  EXPECT_EQ(load.active().seconds(), 10);
  ASSERT_EQ(load.stages_size(), 2);
  EXPECT_EQ(load.stages(0).stage(), 0u);
  EXPECT_EQ(load.stages(0).busy_share(), 0.0);
  const v1::StageLoad& stage = load.stages(1);
  EXPECT_EQ(stage.stage(), 1u);
  EXPECT_EQ(stage.worker(), "2@10.0.0.2:7000");
  EXPECT_EQ(stage.first_layer(), 2u);
  EXPECT_EQ(stage.num_layers(), 1u);
  EXPECT_EQ(stage.weight_bytes(), 11u);
  EXPECT_EQ(stage.kv_bytes(), 12u);
  EXPECT_EQ(stage.activation_bytes(), 13u);
  EXPECT_EQ(stage.numeric_class(), "cpu/int8/kv-f16");
  EXPECT_EQ(stage.kernels(), "cpu/avx512");
  EXPECT_EQ(stage.threads(), 3u);
  ASSERT_EQ(stage.shards_size(), 2);
  EXPECT_EQ(stage.shards(0).weight_bytes(), 5u);
  EXPECT_EQ(stage.shards(1).kv_bytes(), 8u);
  EXPECT_EQ(stage.shards(1).activation_bytes(), 9u);
  EXPECT_EQ(stage.busy().seconds(), 7);
  EXPECT_EQ(stage.microbatches(), 14u);
  EXPECT_EQ(stage.rows(), 15u);
  EXPECT_DOUBLE_EQ(stage.busy_share(), 0.75);
  EXPECT_EQ(stage.cost_error(), 0.125);
  EXPECT_EQ(load.slots(), 9u);
}

TEST_F(UnaryTest, TellsTheBubblesOfEachStage) {
  PipelineSnapshot snapshot;
  snapshot.stages.resize(2);
  snapshot.stages[1].total.busy = absl::Milliseconds(7500);
  snapshot.stages[1].total.microbatches = 14;
  snapshot.stages[1].total.preempted = absl::Milliseconds(500);
  snapshot.stages[1].total.on_the_way = absl::Milliseconds(28);
  for (size_t cause = 0; cause < kNumIdleCauses; ++cause) {
    snapshot.stages[1].total.idle.by_cause[cause] = absl::Seconds(cause + 1);
    snapshot.stages[0].window.idle.by_cause[cause] = absl::Milliseconds(cause + 1);
  }
  snapshot.stages[0].window.busy = absl::Milliseconds(20);
  snapshot.stages[0].activation_bytes_sent = 99;
  snapshot.mean_hop = absl::Milliseconds(3);
  engine_.set_snapshot(snapshot);
  StartServer();
  v1::GetLoadResponse load;
  grpc::ClientContext context;
  ASSERT_TRUE(control_->GetLoad(&context, v1::GetLoadRequest(), &load).ok());
  ASSERT_EQ(load.stages_size(), 2);
  const v1::StageLoad& stage = load.stages(1);
  EXPECT_EQ(stage.preempted().nanos(), 500000000);
  EXPECT_EQ(stage.mean_way().nanos(), 2000000);
  EXPECT_EQ(stage.idle().no_work().seconds(), 1);
  EXPECT_EQ(stage.idle().back_pressured().seconds(), 2);
  EXPECT_EQ(stage.idle().communication().seconds(), 3);
  EXPECT_EQ(stage.idle().too_few_microbatches().seconds(), 4);
  EXPECT_EQ(stage.idle().imbalance().seconds(), 5);
  EXPECT_EQ(stage.idle().starved().seconds(), 6);
  EXPECT_DOUBLE_EQ(stage.bubble_ratio(), 20 / 27.5);
  EXPECT_DOUBLE_EQ(load.bubble_ratio(), 20 / 27.5);
  EXPECT_DOUBLE_EQ(load.stages(0).window().bubble_ratio(), 0.5);
  EXPECT_EQ(load.stages(0).window().idle().starved().nanos(), 6000000);
  EXPECT_DOUBLE_EQ(load.window_bubble_ratio(), 0.5);
  EXPECT_EQ(load.stages(0).activation_bytes_sent(), 99u);
  EXPECT_EQ(load.window().seconds(), 10);
  EXPECT_EQ(load.mean_hop().nanos(), 3000000);
}

TEST_F(UnaryTest, GetClusterTellsWorkersAndWhatTheyMeasured) {
  ClusterSnapshot cluster;
  cluster.workers.resize(2);
  cluster.workers[0].id = WorkerId(5);
  cluster.workers[0].address = "10.0.0.1:7000";
  cluster.workers[0].host = "a";
  cluster.workers[0].numeric_class = "cpu/f32";
  cluster.workers[0].memory_bytes = 100;
  cluster.workers[0].kv_memory_bytes = 50;
  cluster.workers[0].threads = 1;
  cluster.workers[0].stage = 0;
  cluster.workers[0].profile = WorkerProfile{1e6, {{8, 4, 16, 0.5}}, {{2, 2, 0, 0.25}}, 0.125};
  cluster.layers = {7, 3};
  cluster.max_rows = 128;
  cluster.max_in_flight = 12;
  cluster.block_tokens = 16;
  cluster.context_tokens = 512;
  engine_.set_cluster(cluster);
  StartServer();
  v1::GetClusterResponse response;
  grpc::ClientContext context;
  ASSERT_TRUE(control_->GetCluster(&context, v1::GetClusterRequest(), &response).ok());
  ASSERT_EQ(response.workers_size(), 2);
  const v1::ClusterWorker& worker = response.workers(0);
  EXPECT_EQ(worker.worker_id(), 5u);
  EXPECT_EQ(worker.address(), "10.0.0.1:7000");
  EXPECT_EQ(worker.host(), "a");
  EXPECT_EQ(worker.numeric_class(), "cpu/f32");
  EXPECT_EQ(worker.memory_bytes(), 100u);
  EXPECT_EQ(worker.kv_memory_bytes(), 50u);
  EXPECT_EQ(worker.threads(), 1u);
  EXPECT_TRUE(worker.has_stage());
  ASSERT_EQ(worker.profile().layer_size(), 1);
  EXPECT_EQ(worker.profile().layer(0).rows(), 8u);
  EXPECT_EQ(worker.profile().layer(0).sequences(), 4u);
  EXPECT_EQ(worker.profile().layer(0).context(), 16u);
  EXPECT_EQ(worker.profile().layer(0).seconds(), 0.5);
  EXPECT_EQ(worker.profile().head(0).seconds(), 0.25);
  EXPECT_EQ(worker.profile().overhead_seconds(), 0.125);
  EXPECT_EQ(worker.profile().layer_elements(), 1e6);
  EXPECT_FALSE(response.workers(1).has_stage());
  EXPECT_FALSE(response.workers(1).has_profile());
  EXPECT_EQ(response.stages(), 2u);
  EXPECT_EQ(response.layers(1), 3u);
  EXPECT_EQ(response.max_rows(), 128u);
  EXPECT_EQ(response.max_in_flight(), 12u);
  EXPECT_EQ(response.block_tokens(), 16u);
  EXPECT_EQ(response.context_tokens(), 512u);
}

}  // namespace
}  // namespace millrace
