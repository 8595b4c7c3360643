#include "cli/plan_view.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "common/options.h"

namespace millrace::cli {
namespace {

std::string Amount(uint64_t bytes) {
  return absl::StrFormat("%s (%.2f GB)", FormatBytes(bytes), static_cast<double>(bytes) * 1e-9);
}

std::string Milliseconds(double seconds) {
  return seconds < 0.1 ? absl::StrFormat("%.2f ms", seconds * 1e3) : absl::StrFormat("%.3f s", seconds);
}

bool Estimated(const PlanRequest& request) {
  return std::any_of(request.cluster.workers.begin(), request.cluster.workers.end(),
                     [](const PlannedWorker& worker) { return !worker.profile.has_value(); });
}

std::string Degree(const PlanChoice& choice) {
  return absl::StrCat(choice.stages, " x ", choice.tensor_parallel, choice.tensor_parallel > 1 ? " *" : "");
}

// What textbooks reckon with, beside what is so.
std::string Textbook(const PlanRequest& request, const Plan& plan) {
  const ModelShape& shape = request.shape;
  const double kv = static_cast<double>(plan.kv_bytes_per_token) * request.context_tokens;
  const double rule_weights = std::round(plan.parameters * 1e-9) * 2;
  const double rule_kv = 4.0 * shape.num_layers * shape.hidden_size * request.context_tokens;
  std::string out = "\nby the textbook (16 bit)                       exact\n";
  const bool large = plan.parameters >= 1e9;
  const std::string weights =
      large ? absl::StrFormat("weights   about %.0f GB (2 bytes x %.0f B)", rule_weights, rule_weights / 2)
            : absl::StrFormat("weights   about %.2f GB (2 bytes each)", plan.parameters * 2e-9);
  absl::StrAppend(&out,
                  absl::StrFormat("%-46s %.2f GB\n", weights, static_cast<double>(plan.weight_bytes) * 1e-9));
  absl::StrAppend(&out, absl::StrFormat("%-46s %.2f GB = %s\n",
                                        absl::StrFormat("KV cache  about %.1f GB (batch 1, %d tokens)",
                                                        rule_kv * 1e-9, request.context_tokens),
                                        kv * 1e-9, FormatBytes(static_cast<uint64_t>(kv))));
  const double p = std::max<double>(2, static_cast<double>(request.cluster.workers.size()));
  absl::StrAppend(
      &out, absl::StrFormat("%-46s %.1f %%\n", absl::StrFormat("bubble    one batch (p-1)/p, p = %.0f", p),
                            (p - 1) / p * 100));
  for (const double m : {4.0, 16.0}) {
    absl::StrAppend(&out, absl::StrFormat("%-46s %.1f %%\n",
                                          absl::StrFormat("bubble    m = %.0f one-shot (p-1)/(m+p-1)", m),
                                          (p - 1) / (m + p - 1) * 100));
  }
  return out;
}

std::string Choices(const Plan& plan) {
  std::string out =
      absl::StrFormat("\n%-14s %12s %12s %11s %11s %8s %12s %10s\n", "stages x TP", "decode tok/s",
                      "prefill tok/s", "1st token", "next token", "bubble", "at context", "imbalance");
  for (const PlanChoice& choice : plan.choices) {
    if (!choice.fits) {
      absl::StrAppend(&out, absl::StrFormat("%-14s does not fit: %s\n", Degree(choice), choice.why_not));
      continue;
    }
    const std::string sequences =
        choice.max_sequences == 0 ? "?" : absl::StrCat(choice.max_sequences, " seqs");
    absl::StrAppend(
        &out,
        absl::StrFormat("%-14s %12.1f %12.1f %11s %11s %6.1f %% %12s %10.3f\n", Degree(choice),
                        choice.decode_tokens_per_second, choice.prefill_tokens_per_second,
                        Milliseconds(choice.first_token_seconds), Milliseconds(choice.inter_token_seconds),
                        choice.decode.bubble * 100, sequences, choice.max_over_mean));
  }
  return out;
}

std::string Stages(const PlanRequest& request, const PlanChoice& choice) {
  std::string out = absl::StrFormat("\nbest: %s, %d microbatches in flight on average\n", Degree(choice),
                                    static_cast<int>(choice.decode.mean_in_flight + 0.5));
  absl::StrAppend(
      &out, absl::StrFormat("%-6s %-9s %11s %11s %12s %11s %10s %7s  %s\n", "stage", "layers", "weights",
                            "KV cache", "activations", "memory", "16 decodes", "bubble", "worker"));
  for (size_t s = 0; s < choice.placement.size(); ++s) {
    const PlanStage& stage = choice.placement[s];
    const std::string layers =
        absl::StrCat(stage.layers.first, "-", stage.layers.first + stage.layers.count - 1);
    absl::StrAppend(&out, absl::StrFormat("%-6d %-9s %11s %11s %12s %11s %10s %5.1f %%  %s\n", s, layers,
                                          FormatBytes(stage.weight_bytes), FormatBytes(stage.kv_bytes),
                                          FormatBytes(stage.activation_bytes),
                                          stage.memory_bytes == 0 ? "?" : FormatBytes(stage.memory_bytes),
                                          Milliseconds(stage.seconds),
                                          choice.decode.stages[s].BubbleRatio() * 100, stage.worker));
  }
  absl::StrAppend(&out, "KV cache of ", request.batch, " sequences of ", request.context_tokens,
                  " tokens; longest context of one: ", choice.max_context, " tokens");
  if (choice.running < request.batch)
    absl::StrAppend(&out, "; ", choice.running, " of them fit at once, the rest waits");
  absl::StrAppend(&out, absl::StrFormat("\nslowest / mean stage %.3f; whole layers allow %.3f\n",
                                        choice.max_over_mean, choice.bound));
  StageUse sum;
  for (const StageUse& use : choice.decode.stages) sum += use;
  const absl::Duration worked = sum.busy + sum.idle.Bubble();
  absl::StrAppend(&out, absl::StrFormat("bubble %.1f %%, by cause:", choice.decode.bubble * 100));
  for (size_t cause = 0; cause < kNumIdleCauses; ++cause) {
    const IdleCause which = static_cast<IdleCause>(cause);
    if (which == IdleCause::kNoWork) continue;
    const double share = worked > absl::ZeroDuration() ? absl::FDivDuration(sum.idle[which], worked) : 0;
    absl::StrAppend(&out, absl::StrFormat(" %s %.1f %%", IdleCauseName(which), share * 100));
  }
  return out + "\n";
}

nlohmann::json ChoiceJson(const PlanChoice& choice) {
  nlohmann::json out = {{"stages", choice.stages},
                        {"tensor_parallel", choice.tensor_parallel},
                        {"by_formula_only", choice.tensor_parallel > 1},
                        {"fits", choice.fits}};
  if (!choice.fits) {
    out["why_not"] = choice.why_not;
    return out;
  }
  out["decode_tokens_per_second"] = choice.decode_tokens_per_second;
  out["prefill_tokens_per_second"] = choice.prefill_tokens_per_second;
  out["first_token_seconds"] = choice.first_token_seconds;
  out["inter_token_seconds"] = choice.inter_token_seconds;
  out["bubble"] = choice.decode.bubble;
  out["microbatches_in_flight"] = choice.decode.mean_in_flight;
  out["max_sequences"] = choice.max_sequences;
  out["max_context"] = choice.max_context;
  out["running"] = choice.running;
  out["imbalance"] = choice.max_over_mean;
  out["imbalance_bound"] = choice.bound;
  StageUse sum;
  for (size_t s = 0; s < choice.placement.size(); ++s) {
    const PlanStage& stage = choice.placement[s];
    sum += choice.decode.stages[s];
    out["placement"].push_back({{"first_layer", stage.layers.first},
                                {"num_layers", stage.layers.count},
                                {"worker", stage.worker},
                                {"weight_bytes", stage.weight_bytes},
                                {"kv_bytes", stage.kv_bytes},
                                {"activation_bytes", stage.activation_bytes},
                                {"memory_bytes", stage.memory_bytes},
                                {"predicted_seconds", stage.seconds},
                                {"bubble", choice.decode.stages[s].BubbleRatio()}});
  }
  const absl::Duration worked = sum.busy + sum.idle.Bubble();
  for (size_t cause = 0; cause < kNumIdleCauses; ++cause) {
    const IdleCause which = static_cast<IdleCause>(cause);
    if (which == IdleCause::kNoWork || worked <= absl::ZeroDuration()) continue;
    out["bubble_by_cause"][IdleCauseName(which)] = absl::FDivDuration(sum.idle[which], worked);
  }
  return out;
}

}  // namespace

std::string PlanText(const PlanRequest& request, const Plan& plan) {
  const PlanChoice& best = plan.choices.front();
  std::string out = absl::StrFormat("model      %s, %.2f B parameters, %d layers\n", request.shape.name,
                                    plan.parameters * 1e-9, request.shape.num_layers);
  absl::StrAppend(&out, "weights    ", Amount(plan.weight_bytes), "\nKV cache   ",
                  FormatBytes(plan.kv_bytes_per_token), " a token, ",
                  Amount(plan.kv_bytes_per_token * request.context_tokens), " for ", request.context_tokens,
                  " tokens\n");
  absl::StrAppend(&out, "cluster    ", request.cluster.workers.size(), " workers, ",
                  Estimated(request) ? "speeds estimated from published or given figures (an upper bound)"
                                     : "speeds as measured when they joined",
                  absl::StrFormat("; links %.0f us, %.2f GB/s\n", request.cluster.link_seconds * 1e6,
                                  request.cluster.link_bytes_per_second * 1e-9));
  absl::StrAppend(&out, "load       ", request.batch, " sequences at once, prompts of ",
                  request.prompt_tokens, " tokens, context ", request.context_tokens, "\n");
  absl::StrAppend(&out, Choices(plan));
  const bool by_formula = std::any_of(plan.choices.begin(), plan.choices.end(),
                                      [](const PlanChoice& choice) { return choice.tensor_parallel > 1; });
  if (by_formula)
    absl::StrAppend(&out, "* by formula, not simulated: shards of a stage, each on a device of its own\n");
  absl::StrAppend(&out, Stages(request, best), Textbook(request, plan));
  return out;
}

std::string PlanJson(const PlanRequest& request, const Plan& plan) {
  nlohmann::json out = {{"model", request.shape.name},
                        {"parameters", plan.parameters},
                        {"layers", request.shape.num_layers},
                        {"weight_bytes", plan.weight_bytes},
                        {"kv_bytes_per_token", plan.kv_bytes_per_token},
                        {"context_tokens", request.context_tokens},
                        {"batch", request.batch},
                        {"prompt_tokens", request.prompt_tokens},
                        {"estimated", Estimated(request)}};
  for (const PlanChoice& choice : plan.choices) out["choices"].push_back(ChoiceJson(choice));
  return out.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace millrace::cli
