// What a load generator sends, as a pure function of its options and a seed.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "millrace/v1/inference.pb.h"

namespace millrace::bench {

// Whole numbers from `low` to `high`, both included.
struct Range {
  uint32_t low = 1;
  uint32_t high = 1;
};
// "128" or "32-1024", each from 1 to 2^20. INVALID_ARGUMENT otherwise.
absl::StatusOr<Range> ParseRange(absl::string_view text);

struct WorkloadOptions {
  Range prompt_tokens{64, 64};
  Range output_tokens{64, 64};
  // From 0 to 1: this share of the requests, chosen by the seed, has the longest output and all others the
  // shortest. Below 0: uniform between the two.
  double long_share = -1;
  std::vector<std::string> texts;  // prompts taken in turn; empty: random token ids
  uint32_t vocabulary_size = 0;    // for random token ids; above kFirstOrdinaryId
  uint64_t seed = 1;
};

// Ids below this are left out of random prompts: vocabularies have their control tokens there.
inline constexpr uint32_t kFirstOrdinaryId = 100;

// Thread: one.
class Workload {
 public:
  explicit Workload(WorkloadOptions options);

  // The next request: greedy, with ignore_eos, so that its length is what was asked for.
  v1::GenerateRequest Next();

  // Seconds to the next arrival of a Poisson process of `rate` requests a second.
  double NextGap(double rate);

 private:
  uint32_t Draw(const Range& range);

  const WorkloadOptions options_;
  std::mt19937_64 random_;
  size_t next_text_ = 0;
};

}  // namespace millrace::bench
