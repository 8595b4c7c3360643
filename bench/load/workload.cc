#include "bench/load/workload.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace millrace::bench {

absl::StatusOr<Range> ParseRange(absl::string_view text) {
  constexpr uint32_t kMax = 1u << 20;
  const std::vector<absl::string_view> parts = absl::StrSplit(text, absl::MaxSplits('-', 1));
  Range range;
  if (absl::SimpleAtoi(parts.front(), &range.low) && absl::SimpleAtoi(parts.back(), &range.high) &&
      range.low >= 1 && range.low <= range.high && range.high <= kMax) {
    return range;
  }
  return absl::InvalidArgumentError(absl::StrCat("'", text, "' is not a range such as 128 or 32-1024"));
}

Workload::Workload(WorkloadOptions options) : options_(std::move(options)), random_(options_.seed) {}

uint32_t Workload::Draw(const Range& range) {
  return std::uniform_int_distribution<uint32_t>(range.low, range.high)(random_);
}

v1::GenerateRequest Workload::Next() {
  v1::GenerateRequest request;
  if (options_.texts.empty()) {
    const Range ids{std::min(kFirstOrdinaryId, options_.vocabulary_size - 1), options_.vocabulary_size - 1};
    const uint32_t length = Draw(options_.prompt_tokens);
    for (uint32_t i = 0; i < length; ++i) request.mutable_token_ids()->add_ids(Draw(ids));
  } else {
    request.set_text(options_.texts[next_text_++ % options_.texts.size()]);
  }
  uint32_t output = Draw(options_.output_tokens);
  if (options_.long_share >= 0) {
    const bool is_long = std::uniform_real_distribution<double>(0, 1)(random_) < options_.long_share;
    output = is_long ? options_.output_tokens.high : options_.output_tokens.low;
  }
  request.mutable_sampling()->set_temperature(0);
  request.mutable_stop()->set_max_tokens(output);
  request.mutable_stop()->set_ignore_eos(true);
  return request;
}

double Workload::NextGap(double rate) {
  return std::exponential_distribution<double>(rate)(random_);
}

}  // namespace millrace::bench
