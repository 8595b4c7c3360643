// What waits for the text thread.
#pragma once

#include <atomic>
#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/ids.h"
#include "common/mutex.h"
#include "coordinator/frontend/generate_stream.h"
#include "coordinator/frontend/request_validator.h"
#include "coordinator/scheduler/microbatch_plan.h"

namespace millrace {

struct GenerateJob {
  std::shared_ptr<GenerateStream> stream;
  CheckedRequest request;
  absl::Time arrived;
};
// A unary call: run with OK, or refused with the status.
using UnaryJob = std::function<void(const absl::Status&)>;

struct TextJob {
  std::variant<GenerateJob, UnaryJob> work;
  size_t input_bytes = 0;
};

struct TextInboxLimits {
  size_t max_jobs = 1024;
  size_t max_job_bytes = size_t{64} << 20;  // of inputs that wait
  // The engine pauses from here on. What it then has in flight still comes, so this is not the most there can
  // be: that is this plus one action for each row in flight.
  size_t max_actions = 4096;
};

// A queue with three kinds of items, because they differ in what may be refused: jobs may (bounded by number
// and bytes), the engine's actions may not (bounded by HasRoom), requests to end may not (bounded by the
// number of live requests). Thread: any to push; text to take.
class TextInbox {
 public:
  explicit TextInbox(TextInboxLimits limits) : limits_(limits) {}

  // RESOURCE_EXHAUSTED QUEUE_FULL, UNAVAILABLE SHUTTING_DOWN; `job` is moved from only on OK.
  absl::Status PushJob(TextJob&& job);
  // Dropped once closed.
  void PushActions(std::vector<SchedulerAction> actions);
  void PushEndRequest(SequenceId id);

  bool HasRoom() const { return pending_actions_.load(std::memory_order_acquire) < limits_.max_actions; }

  struct Batch {
    std::vector<SchedulerAction> actions;
    std::vector<SequenceId> end_requests;
    std::optional<TextJob> job;  // one: the actions that come meanwhile go first
    bool closed = false;
  };
  // Waits until there is something, or closed, or `timeout` has passed.
  Batch Take(absl::Duration timeout);
  // The actions of a batch have been dealt with.
  void Done(size_t actions) { pending_actions_.fetch_sub(actions, std::memory_order_acq_rel); }

  void Close();
  size_t jobs() const;

 private:
  const TextInboxLimits limits_;
  std::atomic<size_t> pending_actions_{0};  // pushed, not yet Done
  mutable Mutex mutex_;
  CondVar changed_;
  std::deque<TextJob> jobs_ ABSL_GUARDED_BY(mutex_);
  size_t job_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<SchedulerAction> actions_ ABSL_GUARDED_BY(mutex_);
  std::vector<SequenceId> end_requests_ ABSL_GUARDED_BY(mutex_);
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace millrace
