// What a load generator saw during one window of time, and its JSON.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/time/time.h"
#include "bench/load/load_client.h"
#include "millrace/v1/control.pb.h"
#include "nlohmann/json.hpp"

namespace millrace::bench {

// Thread: one.
class LoadWindow {
 public:
  LoadWindow(absl::Time begin, v1::GetLoadResponse load) : begin_(begin), load_begin_(std::move(load)) {}

  void OnTokens(const TokensArrived& arrived);
  void OnDone(const StreamRecord& record, absl::Time now, bool ok);
  void Close(absl::Time end, v1::GetLoadResponse load);

  // seconds, tokens, characters, finished, failed; the distributions of ttft_ms, inter_token_ms and
  // request_ms; GetLoad's answers as load_begin and load_end, fields as in the proto.
  nlohmann::json ToJson() const;

 private:
  const absl::Time begin_;
  absl::Time end_;
  const v1::GetLoadResponse load_begin_;
  v1::GetLoadResponse load_end_;
  uint64_t tokens_ = 0;
  uint64_t characters_ = 0;  // Unicode code points
  uint64_t finished_ = 0;
  uint64_t failed_ = 0;
  std::vector<double> ttft_ms_;
  std::vector<double> inter_token_ms_;
  std::vector<double> request_ms_;
};

// {n, mean, p50, p90, p99, max}; only n = 0 where there is nothing.
nlohmann::json Distribution(std::vector<double> values);

}  // namespace millrace::bench
