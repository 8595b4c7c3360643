// What a load generator saw during one window of time, and its JSON.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/time/time.h"
#include "bench/load/load_client.h"
#include "millrace/v1/control.pb.h"
#include "nlohmann/json.hpp"

namespace millrace::bench {

// The part of a round in which all of its sequences are decoding: from the first token of the last one to
// begin, to that sequence's last token before any sequence ends. Both ends are the same place in a step, so
// that a whole number of steps is counted, however the tokens of a step come.
// Thread: one.
class TogetherMeter {
 public:
  // sequences: how many make it a round; 0: none, and nothing is measured.
  explicit TogetherMeter(uint32_t sequences) : sequences_(sequences) {}

  void OnTokens(const TokensArrived& arrived);
  void OnDone() { ended_ = true; }

  // {seconds, tokens}; both 0 where nothing was measured.
  nlohmann::json ToJson() const;

 private:
  const uint32_t sequences_;
  uint32_t begun_ = 0;
  bool ended_ = false;
  const StreamRecord* last_ = nullptr;  // the one that began last; only compared
  absl::Time begin_;
  absl::Time end_;
  uint64_t counted_ = 0;  // since begin_
  uint64_t tokens_ = 0;   // from begin_ to end_
};

// Thread: one.
class LoadWindow {
 public:
  // sequences: that all begin inside the window; 0: unknown.
  LoadWindow(absl::Time begin, v1::GetLoadResponse load, uint32_t sequences = 0)
      : begin_(begin), load_begin_(std::move(load)), together_(sequences) {}

  void OnTokens(const TokensArrived& arrived);
  void OnDone(const StreamRecord& record, absl::Time now, bool ok);
  void Close(absl::Time end, v1::GetLoadResponse load);

  // seconds, tokens, characters, finished, failed; the distributions of ttft_ms, inter_token_ms and
  // request_ms; together, of TogetherMeter; GetLoad's answers as load_begin and load_end, fields as in the
  // proto.
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
  TogetherMeter together_;
};

// {n, mean, p50, p90, p99, max}; only n = 0 where there is nothing.
nlohmann::json Distribution(std::vector<double> values);

}  // namespace millrace::bench
