// The kinds of load a benchmark puts on a cluster, and what it measures meanwhile.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "bench/load/load_client.h"
#include "bench/load/load_window.h"
#include "bench/load/workload.h"

namespace millrace::bench {

enum class LoadMode {
  kSteady,     // so many sequences are kept alive: one that ends is replaced
  kPoisson,    // requests arrive at a rate, whatever the server can do
  kOneShot,    // all requests at once, to the end of the last; again for each window
  kRecompute,  // each token is a request of its own, whose prompt is everything before it
};

struct LoadOptions {
  LoadMode mode = LoadMode::kSteady;
  uint32_t sequences = 1;
  double rate = 1;  // requests a second
  // Steady: counted from the first token of the last of the first sequences.
  absl::Duration warmup = absl::Seconds(1);
  absl::Duration window = absl::Seconds(5);
  uint32_t windows = 1;
  absl::Duration limit = absl::Minutes(10);  // of the whole run
  WorkloadOptions workload;
};

// Thread: one.
class LoadDriver {
 public:
  LoadDriver(std::shared_ptr<grpc::Channel> channel, LoadOptions options);

  // {sent, refused, windows: [LoadWindow]}. Requests that are under way at the end are cancelled.
  // DEADLINE_EXCEEDED: not done within the limit. Otherwise the status of the first request that failed, but
  // for those that found the queue full, which are counted as refused.
  absl::StatusOr<nlohmann::json> Run();

 private:
  absl::Status RunSteady();
  absl::Status RunPoisson();
  absl::Status RunOneShot();
  absl::Status RunRecompute();
  // Windows one after another from now on; `until` runs the load up to a time.
  absl::Status Measure(const std::function<absl::Status(absl::Time until)>& run);
  absl::Status PollUntil(absl::Time until, const std::function<bool()>& done);
  absl::Status ArriveUntil(absl::Time until);
  // sequences: that all begin inside it; 0: unknown.
  absl::Status OpenWindow(uint32_t sequences = 0);
  absl::Status CloseWindow();
  void Send();
  void OnDone(const StreamRecord& record, const grpc::Status& status);

  LoadOptions options_;
  Workload workload_;
  absl::Time deadline_;
  absl::Time next_arrival_;
  absl::Status failure_;
  bool replace_ = false;  // a stream that ends is followed by another
  std::vector<uint32_t> last_output_;
  uint64_t sent_ = 0;
  uint64_t refused_ = 0;
  uint64_t first_tokens_ = 0;
  std::optional<LoadWindow> window_;
  nlohmann::json windows_ = nlohmann::json::array();
  LoadClient client_;  // last: its end calls back
};

}  // namespace millrace::bench
