#include "tests/unit/scheduler/deliberate_faults.h"

#include <algorithm>
#include <map>
#include <utility>

namespace millrace::testing {
namespace {

using PlanChange = std::function<bool(MicrobatchPlan&)>;
using ActionsChange = std::function<bool(std::vector<SchedulerAction>&)>;

DeliberateFault InPlan(std::string name, PlanChange change) {
  return {std::move(name), std::move(change), nullptr};
}
DeliberateFault InActions(std::string name, ActionsChange change) {
  return {std::move(name), nullptr, std::move(change)};
}

// Applies `change` to the first segment that it takes.
PlanChange OnSegment(const std::function<bool(PlanSegment&)>& change) {
  return [change](MicrobatchPlan& plan) {
    return std::any_of(plan.segments.begin(), plan.segments.end(), change);
  };
}

// The first action of a kind.
template <typename Action>
std::vector<SchedulerAction>::iterator Find(std::vector<SchedulerAction>& actions) {
  return std::find_if(actions.begin(), actions.end(),
                      [](const SchedulerAction& action) { return std::holds_alternative<Action>(action); });
}

template <typename Action>
ActionsChange Drop() {
  return [](std::vector<SchedulerAction>& actions) {
    const auto it = Find<Action>(actions);
    if (it == actions.end()) return false;
    actions.erase(it);
    return true;
  };
}

template <typename Action>
ActionsChange Repeat() {
  return [](std::vector<SchedulerAction>& actions) {
    const auto it = Find<Action>(actions);
    if (it == actions.end()) return false;
    const SchedulerAction again = *it;
    actions.insert(it, again);
    return true;
  };
}

template <typename Action>
ActionsChange Change(const std::function<void(Action&)>& change) {
  return [change](std::vector<SchedulerAction>& actions) {
    const auto it = Find<Action>(actions);
    if (it == actions.end()) return false;
    change(std::get<Action>(*it));
    return true;
  };
}

bool ShareABlock(MicrobatchPlan& plan) {
  for (PlanSegment& a : plan.segments) {
    for (const PlanSegment& b : plan.segments) {
      if (a.sequence == b.sequence || b.first_position == 0) continue;
      a.block_ids.back() = b.block_ids.front();
      return true;
    }
  }
  return false;
}

bool SwapBlocks(PlanSegment& segment) {
  if (segment.block_ids.size() < 3 || segment.first_position < segment.block_ids.size()) return false;
  std::swap(segment.block_ids[0], segment.block_ids[1]);
  return true;
}

bool LoseASegment(MicrobatchPlan& plan) {
  if (plan.segments.size() < 2) return false;
  plan.segments.pop_back();
  return true;
}

bool RepeatASegment(MicrobatchPlan& plan) {
  plan.segments.push_back(plan.segments.front());
  return true;
}

bool SkipAPosition(PlanSegment& segment) {
  if (segment.token_ids.size() < 2) return false;
  ++segment.first_position;
  segment.token_ids.erase(segment.token_ids.begin());
  return true;
}

bool EndBeforeItsToken(std::vector<SchedulerAction>& actions) {
  for (size_t i = 0; i + 1 < actions.size(); ++i) {
    if (!std::holds_alternative<TokenReady>(actions[i]) ||
        !std::holds_alternative<SequenceFinished>(actions[i + 1])) {
      continue;
    }
    std::swap(actions[i], actions[i + 1]);
    return true;
  }
  return false;
}

}  // namespace

const std::vector<DeliberateFault>& DeliberateFaults() {
  static const auto* const faults = new std::vector<DeliberateFault>{
      InPlan("drops a block", OnSegment([](PlanSegment& segment) {
               segment.block_ids.pop_back();
               return true;
             })),
      InPlan("gives a block twice", ShareABlock),
      InPlan("swaps two blocks of a sequence", OnSegment(SwapBlocks)),
      InPlan("names a block that is none", OnSegment([](PlanSegment& segment) {
               segment.block_ids.front() = 1u << 30;
               return true;
             })),
      InPlan("skips a position", OnSegment(SkipAPosition)),
      InPlan("computes a position again", OnSegment([](PlanSegment& segment) {
               if (segment.first_position == 0) return false;
               --segment.first_position;
               return true;
             })),
      InPlan("loses a segment", LoseASegment),
      InPlan("repeats a segment", RepeatASegment),
      InPlan("empties a microbatch",
             [](MicrobatchPlan& plan) {
               plan.segments.clear();
               return true;
             }),
      InPlan("plans a wrong token", OnSegment([](PlanSegment& segment) {
               ++segment.token_ids.back();
               return true;
             })),
      InPlan("forgets to sample", OnSegment([](PlanSegment& segment) {
               return std::exchange(segment.sampling, std::nullopt).has_value();
             })),
      InPlan("forgets what is suppressed", OnSegment([](PlanSegment& segment) {
               return !std::exchange(segment.suppressed_ids, {}).empty();
             })),
      InPlan("forgets the history",
             OnSegment([](PlanSegment& segment) { return !std::exchange(segment.history, {}).empty(); })),
      InPlan("forgets the next prompt token", OnSegment([](PlanSegment& segment) {
               return std::exchange(segment.next_prompt_id, std::nullopt).has_value();
             })),
      InPlan("plans another sequence", OnSegment([](PlanSegment& segment) {
               segment.sequence = SequenceId(segment.sequence.value() + 1000000);
               return true;
             })),
      InPlan("leaves out a microbatch id",
             [](MicrobatchPlan& plan) {
               plan.id = MicrobatchId(plan.id.value() + 1);
               return true;
             }),
      InActions("drops a token", Drop<TokenReady>()),
      InActions("repeats a token", Repeat<TokenReady>()),
      InActions("changes a token", Change<TokenReady>([](TokenReady& ready) { ++ready.token; })),
      InActions("drops an end", Drop<SequenceFinished>()),
      InActions("repeats an end", Repeat<SequenceFinished>()),
      InActions("ends before the last token", EndBeforeItsToken),
      InActions("ends for another reason", Change<SequenceFinished>([](SequenceFinished& finished) {
                  finished.status = finished.status.ok() ? absl::InternalError("") : absl::OkStatus();
                })),
      InActions("counts a token too many",
                Change<SequenceFinished>([](SequenceFinished& finished) { ++finished.output_tokens; })),
      InActions("tells a wrong time", Change<SequenceFinished>([](SequenceFinished& finished) {
                  finished.timings.queue += absl::Nanoseconds(1);
                })),
      InActions("drops prompt log probabilities", Drop<PromptLogprobsReady>()),
      InActions("repeats prompt log probabilities", Repeat<PromptLogprobsReady>()),
  };
  return *faults;
}

}  // namespace millrace::testing
