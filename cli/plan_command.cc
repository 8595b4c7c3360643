#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cli/client.h"
#include "cli/cluster_file.h"
#include "cli/plan_view.h"
#include "common/kv_type.h"
#include "common/status_macros.h"
#include "common/transport/numeric_messages.h"
#include "common/transport/profile_messages.h"
#include "coordinator/planner/plan.h"
#include "coordinator/planner/stage_costs.h"

namespace millrace::cli {
namespace {

constexpr uint32_t kDefaultContext = 4096;
constexpr absl::Duration kCallTimeout = absl::Seconds(5);

struct PlanFlags {
  TlsFlags tls;
  std::string model, shape, cluster, gpus, server, save, kv_type = "auto";
  int64_t context = 0, batch = 16, prompt = 128, output = 64, max_rows = 128;
  bool json = false;

  void Declare(OptionSet& set) {
    set.AddString("model", &model, "F.gguf", "the model, from its file; nothing of it is loaded");
    set.AddString("shape", &shape, "NAME", "or a published model in 16 bit, such as llama-2-7b");
    set.AddString("cluster", &cluster, "F.yaml", "workers and links, as deploy/examples shows");
    set.AddString(
        "gpus", &gpus, "NAME:N,...",
        "or so many devices by the figures of their data sheets, such as H100:4; what is predicted is "
        "an estimate, and an upper bound");
    set.AddString("server", &server, "HOST:PORT",
                  "or those of the cluster that runs there, as its workers measured");
    tls.DeclareClient(set);
    set.AddString("save-cluster", &save, "F.yaml", "with --server: write what they measured there, too");
    set.AddInt("context", &context, 0, 1 << 24,
               "prompt and answer of a sequence; 0: the model's, at most 4096");
    set.AddInt("batch", &batch, 1, 1 << 20, "sequences at once");
    set.AddInt("prompt", &prompt, 1, 1 << 24, "tokens of each prompt");
    set.AddInt("output", &output, 1, 1 << 16, "tokens of each answer over which decoding is predicted");
    set.AddInt("max-rows", &max_rows, 1, 4096, "tokens in one microbatch; with --server: the coordinator's");
    set.AddString("kv-type", &kv_type, "auto|f32|f16|int8",
                  "how keys and values are kept; auto: f16, with --server as they are there");
    set.AddBool("json", &json, "print JSON, one line");
  }
};

absl::StatusOr<ModelShape> ShapeOfFile(const std::string& path) {
  ASSIGN_OR_RETURN(const std::unique_ptr<GgufFile> file, GgufFile::Open(path));
  ASSIGN_OR_RETURN(const HyperParameters parameters, ReadHyperParameters(*file));
  return ReadModelShape(*file, parameters);
}

absl::StatusOr<ModelShape> ShapeOf(const PlanFlags& flags) {
  if (flags.model.empty() == flags.shape.empty()) {
    return absl::InvalidArgumentError("one of --model F.gguf and --shape NAME is needed");
  }
  absl::StatusOr<ModelShape> shape = flags.shape.empty() ? ShapeOfFile(flags.model) : NamedShape(flags.shape);
  if (!shape.ok()) return shape.status();
  const std::optional<KvType> kv_type = flags.kv_type == "auto" ? KvType::kF16 : ParseKvType(flags.kv_type);
  if (!kv_type.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--kv-type: '", flags.kv_type, "' is not auto, f32, f16 or int8"));
  }
  shape->kv_type = *kv_type;
  return shape;
}

// What the server's workers measured, and how it runs them, but for the type of keys and values if that was
// given.
absl::Status TakeFrom(const v1::GetClusterResponse& response, bool keep_kv_type, PlanRequest& request) {
  std::vector<const v1::ClusterWorker*> by_stage(response.stages(), nullptr);
  for (const v1::ClusterWorker& worker : response.workers()) {
    if (worker.has_stage() && worker.stage() < response.stages()) by_stage[worker.stage()] = &worker;
  }
  uint32_t first = 0;
  for (uint32_t stage = 0; stage < response.stages(); ++stage) {
    if (by_stage[stage] == nullptr || !by_stage[stage]->has_profile()) {
      return absl::FailedPreconditionError(
          absl::StrCat("stage ", stage, " of the server has no measured worker yet"));
    }
    const v1::ClusterWorker& from = *by_stage[stage];
    PlannedWorker worker;
    worker.name = from.address();
    worker.memory_bytes = from.memory_bytes();
    worker.kv_memory_bytes = from.kv_memory_bytes();
    worker.profile = FromWire(from.profile(), static_cast<int>(kMaxProfilePoints));
    RETURN_IF_ERROR(CheckProfile(*worker.profile));
    request.cluster.workers.push_back(std::move(worker));
    if (static_cast<int>(stage) >= response.layers_size()) break;
    request.fixed.push_back({first, response.layers(static_cast<int>(stage))});
    first += request.fixed.back().count;
  }
  if (first != request.shape.num_layers) {
    return absl::FailedPreconditionError(absl::StrCat("the server runs a model of ", first, " layers, ",
                                                      request.shape.name, " has ", request.shape.num_layers));
  }
  request.max_rows = response.max_rows();
  request.max_in_flight = response.max_in_flight();
  request.block_tokens = response.block_tokens();
  if (keep_kv_type) return absl::OkStatus();
  request.shape.kv_type = FromWire(response.kv_type()).value_or(KvType::kF32);
  return absl::OkStatus();
}

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "millrace plan: %s\n", std::string(status.message()).c_str());
  return status.code() == absl::StatusCode::kInvalidArgument || status.code() == absl::StatusCode::kNotFound
             ? kExitUsage
             : kExitFailure;
}

// The exit code, if it did not work.
int AskServer(const PlanFlags& flags, PlanRequest& request) {
  ServerFlags server;
  server.server = flags.server;
  server.tls = flags.tls;
  if (const absl::Status tls = server.Load(); !tls.ok()) return Fail(tls);
  Client client(server);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(kCallTimeout));
  v1::GetClusterResponse response;
  const grpc::Status status = client.control->GetCluster(&context, {}, &response);
  if (!status.ok()) return ReportStatus(status, server);
  absl::Status taken = TakeFrom(response, flags.kv_type != "auto", request);
  if (taken.ok() && !flags.save.empty()) taken = WriteClusterFile(request.cluster, flags.save);
  return taken.ok() ? kExitOk : Fail(taken);
}

}  // namespace

int PlanCommand(const std::vector<std::string>& args) {
  PlanFlags flags;
  OptionSet set(
      "millrace plan",
      "(--model F.gguf | --shape NAME) (--cluster F.yaml | --gpus H100:4 | --server HOST:PORT) [options]",
      "Predicts how a model would run on a cluster: memory, throughput, latency, bubbles. Loads nothing.");
  flags.Declare(set);
  const auto outcome = set.Parse(args, nullptr);
  if (!outcome.ok()) return ReportUsage("plan", outcome.status());
  if (*outcome == OptionSet::Outcome::kHelpShown) return kExitOk;
  absl::StatusOr<ModelShape> shape = ShapeOf(flags);
  if (!shape.ok()) return Fail(shape.status());
  if (!flags.cluster.empty() + !flags.gpus.empty() + !flags.server.empty() != 1) {
    return ReportUsage("plan",
                       absl::InvalidArgumentError("one of --cluster F.yaml, --gpus NAME:N and --server "
                                                  "HOST:PORT is needed"));
  }
  PlanRequest request;
  request.shape = *std::move(shape);
  request.max_rows = static_cast<uint32_t>(flags.max_rows);
  request.batch = static_cast<uint32_t>(flags.batch);
  request.prompt_tokens = static_cast<uint32_t>(flags.prompt);
  request.output_tokens = static_cast<uint32_t>(flags.output);
  request.context_tokens = flags.context != 0 ? static_cast<uint32_t>(flags.context)
                                              : std::min(kDefaultContext, request.shape.context_tokens);
  if (!flags.server.empty()) {
    if (const int code = AskServer(flags, request); code != kExitOk) return code;
  } else {
    absl::StatusOr<PlannedCluster> cluster =
        flags.gpus.empty() ? ReadClusterFile(flags.cluster) : ClusterOfGpus(flags.gpus);
    if (!cluster.ok()) return Fail(cluster.status());
    request.cluster = *std::move(cluster);
  }
  const absl::StatusOr<Plan> plan = MakePlan(request);
  if (!plan.ok()) return Fail(plan.status());
  std::fputs((flags.json ? PlanJson(request, *plan) + "\n" : PlanText(request, *plan)).c_str(), stdout);
  return kExitOk;
}

}  // namespace millrace::cli
