// How a plan looks, to people and to programs.
#pragma once

#include <string>

#include "coordinator/planner/plan.h"

namespace millrace::cli {

// All choices as a table, the best one in full.
std::string PlanText(const PlanRequest& request, const Plan& plan);
std::string PlanJson(const PlanRequest& request, const Plan& plan);  // one line

}  // namespace millrace::cli
