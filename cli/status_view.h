// The texts of `millrace status --watch`.
#pragma once

#include <string>
#include <vector>

#include "millrace/v1/control.pb.h"

namespace millrace::cli {

// Two looks at a server, `seconds` apart; for the first look both are the same and `seconds` is 0.
struct WatchInput {
  v1::GetServerInfoResponse server;
  v1::GetLoadResponse before;
  v1::GetLoadResponse load;
  double seconds = 0;
};

// A table of several lines. The causes are shares of the time with work, as the bubble ratio that they add up
// to; `busy` is of all time, the idle time without work included.
std::vector<std::string> WatchTable(const WatchInput& input);

// The same in one line.
std::string WatchLine(const WatchInput& input);

// "serving", "loading", ...
const char* StateName(v1::GetServerInfoResponse::State state);

double Seconds(const google::protobuf::Duration& duration);

}  // namespace millrace::cli
