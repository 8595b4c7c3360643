// What a broken scheduler might do, to see that the simulation's checks notice each of it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "coordinator/scheduler/microbatch_plan.h"
#include "coordinator/scheduler/scheduler.h"

namespace millrace::testing {

struct DeliberateFault {
  std::string name;
  // Changes what the scheduler gave out, if it offers itself for this fault. Says whether it did.
  std::function<bool(MicrobatchPlan&)> in_plan;
  std::function<bool(std::vector<SchedulerAction>&)> in_actions;
};

const std::vector<DeliberateFault>& DeliberateFaults();

}  // namespace millrace::testing
