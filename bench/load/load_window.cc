#include "bench/load/load_window.h"

#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <numeric>
#include <string>
#include <utility>

namespace millrace::bench {
namespace {

nlohmann::json ProtoJson(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  options.always_print_primitive_fields = true;
  std::string text;
  if (!google::protobuf::util::MessageToJsonString(message, &text, options).ok()) return {};
  return nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
}

uint64_t CodePoints(const std::string& utf8) {
  return static_cast<uint64_t>(
      std::count_if(utf8.begin(), utf8.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

}  // namespace

nlohmann::json Distribution(std::vector<double> values) {
  if (values.empty()) return {{"n", 0}};
  std::sort(values.begin(), values.end());
  const auto at = [&](double share) {
    return values[static_cast<size_t>(share * static_cast<double>(values.size() - 1) + 0.5)];
  };
  const double mean = std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
  return {{"n", values.size()}, {"mean", mean},    {"p50", at(0.5)},
          {"p90", at(0.9)},     {"p99", at(0.99)}, {"max", values.back()}};
}

void TogetherMeter::OnTokens(const TokensArrived& arrived) {
  const uint64_t count = static_cast<uint64_t>(arrived.delta.token_ids_size());
  if (ended_ || sequences_ == 0 || count == 0) return;
  counted_ += count;
  if (arrived.record.tokens == 0 && ++begun_ == sequences_) {
    last_ = &arrived.record;
    begin_ = end_ = arrived.now;
    counted_ = 0;
  } else if (last_ == &arrived.record) {
    end_ = arrived.now;
    tokens_ = counted_;
  }
}

nlohmann::json TogetherMeter::ToJson() const {
  return {{"seconds", absl::ToDoubleSeconds(end_ - begin_)}, {"tokens", tokens_}};
}

void LoadWindow::OnTokens(const TokensArrived& arrived) {
  const StreamRecord& record = arrived.record;
  const int count = arrived.delta.token_ids_size();
  together_.OnTokens(arrived);
  tokens_ += static_cast<uint64_t>(count);
  characters_ += CodePoints(arrived.delta.text());
  if (count == 0) return;
  if (record.tokens == 0) {
    ttft_ms_.push_back(absl::ToDoubleMilliseconds(arrived.now - record.sent));
  } else if (record.last_token >= begin_) {
    const double gap = absl::ToDoubleMilliseconds(arrived.now - record.last_token) / count;
    inter_token_ms_.insert(inter_token_ms_.end(), static_cast<size_t>(count), gap);
  }
}

void LoadWindow::OnDone(const StreamRecord& record, absl::Time now, bool ok) {
  together_.OnDone();
  ok ? ++finished_ : ++failed_;
  if (ok) request_ms_.push_back(absl::ToDoubleMilliseconds(now - record.sent));
}

void LoadWindow::Close(absl::Time end, v1::GetLoadResponse load) {
  end_ = end;
  load_end_ = std::move(load);
}

nlohmann::json LoadWindow::ToJson() const {
  return {{"seconds", absl::ToDoubleSeconds(end_ - begin_)},
          {"tokens", tokens_},
          {"characters", characters_},
          {"finished", finished_},
          {"failed", failed_},
          {"ttft_ms", Distribution(ttft_ms_)},
          {"inter_token_ms", Distribution(inter_token_ms_)},
          {"request_ms", Distribution(request_ms_)},
          {"together", together_.ToJson()},
          {"load_begin", ProtoJson(load_begin_)},
          {"load_end", ProtoJson(load_end_)}};
}

}  // namespace millrace::bench
