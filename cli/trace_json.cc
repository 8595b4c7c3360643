#include "cli/trace_json.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace millrace::cli {
namespace {

constexpr int kCoordinatorTrack = 0;
constexpr int64_t kMark = 1000;  // ns: how wide a moment of the coordinator is drawn
// In the order of TraceVisit.idle_ns.
constexpr std::array<const char*, 6> kCauses = {
    "no_work", "back_pressured", "communication", "too_few_microbatches", "imbalance", "starved"};
// In the order in which a gap most likely passed; the meter knows sums only.
constexpr std::array<int, 6> kDrawn = {1, 0, 3, 4, 5, 2};

std::string Quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += {'\\', c};
    } else if (static_cast<unsigned char>(c) < 0x20) {
      absl::StrAppendFormat(&out, "\\u%04x", static_cast<int>(c));
    } else {
      out += c;
    }
  }
  return out + "\"";
}

class TraceWriter {
 public:
  std::string Write(const v1::TraceBegin& begin, const std::vector<v1::TraceMicrobatch>& microbatches);

 private:
  struct Event {
    int64_t time = 0;
    std::string json;
  };

  // Puts a slice on a track after what is there already: clocks are not exact. Returns where it lies.
  std::pair<int64_t, int64_t> Place(int track, int64_t begin, int64_t end);
  void AddSlice(int track, std::pair<int64_t, int64_t> place, const std::string& name, const char* category,
                const std::string& args);
  void AddFlow(const char* phase, uint64_t flow, int track, int64_t time);
  void AddTrackName(int track, const std::string& name);
  void AddMoments(const std::vector<v1::TraceMicrobatch>& microbatches);
  void AddMicrobatch(uint64_t flow, const v1::TraceMicrobatch& microbatch);
  int64_t AddVisit(int track, const v1::TraceMicrobatch& microbatch, const v1::TraceVisit& visit);

  std::vector<Event> events_;
  std::vector<std::string> names_;
  std::map<int, int64_t> free_from_;  // by track
  // By flow: where its plan and its return are drawn.
  std::vector<int64_t> planned_, returned_;
};

std::pair<int64_t, int64_t> TraceWriter::Place(int track, int64_t begin, int64_t end) {
  int64_t& free_from = free_from_[track];
  begin = std::max({begin, free_from, int64_t{0}});
  end = std::max(begin, end);
  free_from = end;
  return {begin, end};
}

void TraceWriter::AddSlice(int track, std::pair<int64_t, int64_t> place, const std::string& name,
                           const char* category, const std::string& args) {
  const auto [begin, end] = place;
  events_.push_back(
      {begin,
       absl::StrFormat(R"({"ph":"X","pid":1,"tid":%d,"ts":%.3f,"dur":%.3f,"name":%s,"cat":"%s","args":{%s}})",
                       track, begin / 1e3, (end - begin) / 1e3, Quoted(name), category, args)});
}

void TraceWriter::AddFlow(const char* phase, uint64_t flow, int track, int64_t time) {
  events_.push_back(
      {time, absl::StrFormat(R"({"ph":"%s","pid":1,"tid":%d,"ts":%.3f,"id":%d,"name":"microbatch",)"
                             R"("cat":"flow"%s})",
                             phase, track, time / 1e3, flow, *phase == 'f' ? R"(,"bp":"e")" : "")});
}

void TraceWriter::AddTrackName(int track, const std::string& name) {
  names_.push_back(absl::StrFormat(
      R"({"ph":"M","pid":1,"tid":%d,"ts":0,"name":"thread_name","args":{"name":%s}})", track, Quoted(name)));
  names_.push_back(absl::StrFormat(
      R"({"ph":"M","pid":1,"tid":%d,"ts":0,"name":"thread_sort_index","args":{"sort_index":%d}})", track,
      track));
}

// Plans and returns in the order of time, side by side on the coordinator's track.
void TraceWriter::AddMoments(const std::vector<v1::TraceMicrobatch>& microbatches) {
  struct Moment {
    int64_t time;
    bool is_return;
    size_t flow;
  };
  std::vector<Moment> moments;
  for (size_t i = 0; i < microbatches.size(); ++i) {
    moments.push_back({microbatches[i].planned_ns(), false, i});
    moments.push_back({microbatches[i].returned_ns(), true, i});
  }
  std::stable_sort(moments.begin(), moments.end(),
                   [](const Moment& a, const Moment& b) { return a.time < b.time; });
  planned_.resize(microbatches.size());
  returned_.resize(microbatches.size());
  for (const Moment& moment : moments) {
    const v1::TraceMicrobatch& microbatch = microbatches[moment.flow];
    const auto place = Place(kCoordinatorTrack, moment.time, moment.time + kMark);
    (moment.is_return ? returned_ : planned_)[moment.flow] = place.first;
    AddSlice(kCoordinatorTrack, place,
             absl::StrCat(moment.is_return ? "return " : "plan ", microbatch.microbatch_id()),
             moment.is_return ? "return" : "plan",
             absl::StrFormat(R"("microbatch":%d,"in_flight":%d,"live_requests":%d)",
                             microbatch.microbatch_id(), microbatch.in_flight(), microbatch.live_requests()));
    if (moment.is_return) continue;
    events_.push_back(
        {place.first, absl::StrFormat(R"({"ph":"C","pid":1,"tid":%d,"ts":%.3f,"name":"in flight",)"
                                      R"("args":{"microbatches":%d}})",
                                      kCoordinatorTrack, place.first / 1e3, microbatch.in_flight())});
  }
}

// Returns when it began to compute.
int64_t TraceWriter::AddVisit(int track, const v1::TraceMicrobatch& microbatch, const v1::TraceVisit& visit) {
  int64_t idle = 0;
  for (const uint64_t part : visit.idle_ns()) idle += static_cast<int64_t>(part);
  int64_t at = visit.started_ns() - idle;
  for (const int cause : kDrawn) {
    if (cause >= visit.idle_ns_size() || visit.idle_ns(cause) == 0) continue;
    const int64_t until = at + static_cast<int64_t>(visit.idle_ns(cause));
    // What began before the trace is cut.
    const auto place = Place(track, at, until);
    if (place.second > place.first) AddSlice(track, place, kCauses[cause], "idle", "");
    at = until;
  }
  const auto place = Place(track, visit.started_ns(), visit.ended_ns());
  const uint32_t prefill = microbatch.rows() - std::min(microbatch.rows(), microbatch.decode_rows());
  std::string name = absl::StrCat("microbatch ", microbatch.microbatch_id(), ": ");
  if (microbatch.decode_rows() > 0) absl::StrAppend(&name, microbatch.decode_rows(), " decode");
  if (microbatch.decode_rows() > 0 && prefill > 0) name += " + ";
  if (prefill > 0) absl::StrAppend(&name, prefill, " prefill");
  AddSlice(track, place, name, "busy",
           absl::StrFormat(
               R"("microbatch":%d,"epoch":%d,"rows":%d,"decode_rows":%d,"prefill_rows":%d,"requests":%d,)"
               R"("waited_us":%.3f,"preempted_us":%.3f,"sent_after_us":%.3f)",
               microbatch.microbatch_id(), microbatch.epoch(), microbatch.rows(), microbatch.decode_rows(),
               prefill, microbatch.requests(), (visit.started_ns() - visit.received_ns()) / 1e3,
               visit.preempted_ns() / 1e3, (visit.sent_ns() - visit.ended_ns()) / 1e3));
  return place.first;
}

void TraceWriter::AddMicrobatch(uint64_t flow, const v1::TraceMicrobatch& microbatch) {
  AddFlow("s", flow, kCoordinatorTrack, planned_[flow]);
  for (int i = 0; i < microbatch.visits_size(); ++i) {
    if (microbatch.visits(i).idle_ns_size() == 0) continue;
    const int64_t started = AddVisit(i + 1, microbatch, microbatch.visits(i));
    // Clocks that are off must not turn an arrow round.
    if (started >= planned_[flow] && started <= returned_[flow]) AddFlow("t", flow, i + 1, started);
  }
  AddFlow("f", flow, kCoordinatorTrack, returned_[flow]);
}

std::string TraceWriter::Write(const v1::TraceBegin& begin,
                               const std::vector<v1::TraceMicrobatch>& microbatches) {
  names_.push_back(R"({"ph":"M","pid":1,"tid":0,"ts":0,"name":"process_name","args":{"name":"Millrace"}})");
  AddTrackName(kCoordinatorTrack, "coordinator");
  for (int i = 0; i < begin.stages_size(); ++i) {
    const v1::TraceStage& stage = begin.stages(i);
    AddTrackName(i + 1, absl::StrCat("stage ", i, ": layers ", stage.first_layer(), "-",
                                     stage.first_layer() + stage.num_layers() - 1, ", ", stage.worker()));
  }
  AddMoments(microbatches);
  for (size_t i = 0; i < microbatches.size(); ++i) AddMicrobatch(i, microbatches[i]);
  std::stable_sort(events_.begin(), events_.end(),
                   [](const Event& a, const Event& b) { return a.time < b.time; });
  std::string json = "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n";
  const char* separator = "";
  const auto append = [&](const std::string& event) {
    absl::StrAppend(&json, separator, event);
    separator = ",\n";
  };
  for (const std::string& name : names_) append(name);
  for (const Event& event : events_) append(event.json);
  return json + "\n]}\n";
}

}  // namespace

std::string TraceJson(const v1::TraceBegin& begin, const std::vector<v1::TraceMicrobatch>& microbatches) {
  return TraceWriter().Write(begin, microbatches);
}

}  // namespace millrace::cli
