#include "cli/trace_json.h"

#include <map>
#include <string>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace millrace::cli {
namespace {

using nlohmann::json;

v1::TraceVisit Visit(int64_t started, int64_t ended, std::vector<uint64_t> idle = {0, 0, 0, 0, 0, 0}) {
  v1::TraceVisit visit;
  visit.set_received_ns(started - 100);
  visit.set_started_ns(started);
  visit.set_ended_ns(ended);
  visit.set_sent_ns(ended + 500);
  visit.set_preempted_ns(7000);
  visit.mutable_idle_ns()->Add(idle.begin(), idle.end());
  return visit;
}

v1::TraceMicrobatch Microbatch(uint64_t id, int64_t planned, int64_t returned,
                               std::vector<v1::TraceVisit> visits) {
  v1::TraceMicrobatch microbatch;
  microbatch.set_epoch(1);
  microbatch.set_microbatch_id(id);
  microbatch.set_planned_ns(planned);
  microbatch.set_returned_ns(returned);
  microbatch.set_rows(20);
  microbatch.set_decode_rows(4);
  microbatch.set_requests(5);
  microbatch.set_in_flight(2);
  for (v1::TraceVisit& visit : visits) *microbatch.add_visits() = std::move(visit);
  return microbatch;
}

v1::TraceBegin TwoStages() {
  v1::TraceBegin begin;
  for (int i = 0; i < 2; ++i) {
    v1::TraceStage* stage = begin.add_stages();
    stage->set_worker("a \"worker\"\n\\");
    stage->set_first_layer(static_cast<uint32_t>(3 * i));
    stage->set_num_layers(3);
  }
  return begin;
}

// What must hold of every trace.
void CheckTrace(const json& trace) {
  double last = 0;
  std::map<int, double> free_from;
  std::map<uint64_t, std::string> flows;
  for (const json& event : trace.at("traceEvents")) {
    const std::string phase = event.at("ph");
    const double ts = event.at("ts");
    if (phase == "M") continue;
    EXPECT_GE(ts, last) << event;
    last = ts;
    if (phase == "X") {
      const int track = event.at("tid");
      const double dur = event.at("dur");
      EXPECT_GE(dur, 0) << event;
      EXPECT_GE(ts, free_from[track] - 0.0015) << event;  // rounded to a thousandth
      free_from[track] = ts + dur;
    } else if (phase == "s" || phase == "t" || phase == "f") {
      flows[event.at("id")] += phase;
    }
  }
  for (const auto& [id, phases] : flows) {
    EXPECT_EQ(phases, "s" + std::string(phases.size() - 2, 't') + "f") << id;
  }
}

json EventNamed(const json& trace, const std::string& name) {
  for (const json& event : trace.at("traceEvents")) {
    if (event.at("name") == name) return event;
  }
  ADD_FAILURE() << "no event " << name;
  return json::object();
}

TEST(TraceJsonTest, StagesAreTracksAndMicrobatchesSlices) {
  const json trace = json::parse(
      TraceJson(TwoStages(), {Microbatch(7, 10000, 200000, {Visit(20000, 50000), Visit(60000, 160000)}),
                              Microbatch(8, 20000, 300000,
                                         {Visit(61000, 90000, {1000, 2000, 3000, 0, 0, 5000}),
                                          Visit(160500, 250000, {0, 0, 500, 0, 0, 0})})}));
  CheckTrace(trace);
  const json busy = EventNamed(trace, "microbatch 7: 4 decode + 16 prefill");
  EXPECT_EQ(busy.at("tid"), 1);
  EXPECT_EQ(busy.at("ts"), 20.0);
  EXPECT_EQ(busy.at("dur"), 30.0);
  EXPECT_EQ(busy.at("args").at("prefill_rows"), 16);
  EXPECT_EQ(busy.at("args").at("preempted_us"), 7.0);
  EXPECT_EQ(EventNamed(trace, "starved").at("dur"), 5.0);
  EXPECT_EQ(EventNamed(trace, "starved").at("cat"), "idle");
  EXPECT_EQ(EventNamed(trace, "plan 7").at("ts"), 10.0);
  EXPECT_EQ(EventNamed(trace, "return 8").at("ts"), 300.0);
  double idle = 0;
  for (const json& event : trace.at("traceEvents")) {
    if (event.value("cat", "") == "idle" && event.at("tid") == 1) idle += event.at("dur").get<double>();
  }
  EXPECT_DOUBLE_EQ(idle, 11.0);
}

TEST(TraceJsonTest, NamesOfTracksAreEscaped) {
  const json trace = json::parse(TraceJson(TwoStages(), {}));
  std::vector<std::string> names;
  for (const json& event : trace.at("traceEvents")) {
    if (event.at("name") == "thread_name") names.push_back(event.at("args").at("name"));
  }
  EXPECT_EQ(names, (std::vector<std::string>{"coordinator", "stage 0: layers 0-2, a \"worker\"\n\\",
                                             "stage 1: layers 3-5, a \"worker\"\n\\"}));
}

// Offsets of clocks are estimates, and the gap before the first visit began before the trace.
TEST(TraceJsonTest, WrongClocksAndCutGapsLeaveAValidTrace) {
  const json trace = json::parse(TraceJson(
      TwoStages(),
      {Microbatch(1, -5000, 3000, {Visit(-4000, -1000, {90000, 0, 0, 0, 0, 0}), Visit(-9000, 2000)}),
       Microbatch(2, 2000, 9000, {Visit(-2000, 500), v1::TraceVisit()}),
       Microbatch(3, 2000, 9000, {Visit(400, 1000, {1, 2, 3, 4, 5, 6}), Visit(1500, 1200)})}));
  CheckTrace(trace);
}

}  // namespace
}  // namespace millrace::cli
