// Who is to leave, what waits for it, and who is to be told: a state machine without I/O, clock or threads.
// Events go in as calls; what is to be done comes out as actions.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/time/time.h"
#include "common/ids.h"

namespace millrace {

struct DrainOptions {
  // How long requests are held for a worker that may go and does not.
  absl::Duration leave_within = absl::Seconds(30);
  // How long they are held for the next ring once it has gone.
  absl::Duration replace_within = absl::Seconds(60);
};

// Actions.
struct HoldRequests {  // those that have not begun
  uint64_t number = 0;
};
struct ReleaseRequests {};
struct AnswerDrain {
  uint64_t call = 0;
  bool finished = false;  // what was waited for has ended; otherwise the wait has
};
using DrainAction = std::variant<HoldRequests, ReleaseRequests, AnswerDrain>;

// Thread: cluster.
//
// A worker that is to leave: requests that have not begun are held from OnDrainWorker on; once those that
// have begun have ended (OnQuiet), or the wait is over, the call is answered and the worker has leave_within
// to go. Once it has gone, the next ring has replace_within to come. What was held then runs; it runs, too,
// on the ring that is there if the worker does not go, and is given up if no ring comes. Several may leave at
// once: requests are held until the last has gone.
//
// The whole coordinator: calls are answered once nothing is live (OnAllIdle), or when their wait is over.
class DrainState {
 public:
  explicit DrainState(DrainOptions options) : options_(options) {}

  // `worker` not valid: the stage has none, so there is nothing to wait for. A worker that is leaving already
  // gets the longer of both times.
  void OnDrainWorker(uint64_t call, WorkerId worker, absl::Duration wait, absl::Time now);
  void OnDrainAll(uint64_t call, absl::Duration wait, absl::Time now);
  // Hold `number` is in effect, and all that had begun has ended.
  void OnQuiet(uint64_t number, absl::Time now);
  void OnAllIdle();  // and so it stays
  void OnGone(WorkerId worker, absl::Time now);
  void OnRingUp();
  void Tick(absl::Time now);
  absl::Time NextTick() const;  // InfiniteFuture if there is nothing to wait for

  std::vector<DrainAction> TakeActions();

  std::vector<WorkerId> leaving() const;
  bool holding() const { return hold_ != 0; }
  std::string Detail() const;  // for people: why requests are held; empty: they are not

 private:
  struct Call {
    std::optional<WorkerId> worker;  // absent: all
    absl::Time until;
  };

  void Answer(bool finished, const std::optional<WorkerId>& worker);
  void ReleaseIfNobodyLeaves();

  const DrainOptions options_;
  std::map<uint64_t, Call> calls_;
  std::map<WorkerId, absl::Time> leaving_;        // until when it has to go
  absl::Time ring_due_ = absl::InfiniteFuture();  // finite: one has gone, a ring is to come by then
  uint64_t hold_ = 0;                             // number of the hold in effect; 0: none
  uint64_t last_hold_ = 0;
  bool quiet_ = false;  // of that hold
  bool all_idle_ = false;
  std::vector<DrainAction> actions_;
};

}  // namespace millrace
