#include "coordinator/pipeline/bubble_meter.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "common/check.h"

namespace millrace {
namespace {

constexpr absl::Duration kZero = absl::ZeroDuration();
constexpr absl::Duration kBucket = absl::Seconds(1);
// Weight of one microbatch in smoothed times: they follow a change of load within a few dozen.
constexpr int kSmoothing = 16;
constexpr uint32_t kMostNeeded = 1024;

absl::Duration Clamp(absl::Duration value, absl::Duration most) {
  return std::clamp(value, kZero, std::max(most, kZero));
}

void SmoothInto(absl::Duration& mean, absl::Duration value, bool first) {
  mean = first ? value : mean + (value - mean) / kSmoothing;
}

}  // namespace

const char* IdleCauseName(IdleCause cause) {
  static constexpr std::array<const char*, kNumIdleCauses> kNames = {
      "no_work", "back_pressured", "communication", "too_few_microbatches", "imbalance", "starved"};
  return kNames[static_cast<size_t>(cause)];
}

absl::Duration IdleTime::Total() const {
  absl::Duration total;
  for (absl::Duration part : by_cause) total += part;
  return total;
}

IdleTime& IdleTime::operator+=(const IdleTime& other) {
  for (size_t i = 0; i < kNumIdleCauses; ++i) by_cause[i] += other.by_cause[i];
  return *this;
}

double StageUse::BubbleRatio() const {
  const absl::Duration bubble = idle.Bubble();
  return bubble + busy > kZero ? absl::FDivDuration(bubble, bubble + busy) : 0.0;
}

StageUse& StageUse::operator+=(const StageUse& other) {
  busy += other.busy;
  preempted += other.preempted;
  on_the_way += other.on_the_way;
  idle += other.idle;
  microbatches += other.microbatches;
  rows += other.rows;
  return *this;
}

// A stamp put in order, with no span longer than the microbatch was under way. Durations cannot overflow
// where differences of the raw numbers could.
struct BubbleMeter::OwnTimes {
  absl::Duration received, started, ended, sent, cpu;

  OwnTimes(const StageStamp& stamp, absl::Duration most) {
    started = absl::Nanoseconds(stamp.started_ns);
    received = std::min(absl::Nanoseconds(stamp.received_ns), started);
    ended = started + Clamp(absl::Nanoseconds(stamp.ended_ns) - started, most);
    sent = ended + Clamp(absl::Nanoseconds(stamp.sent_ns) - ended, most);
    cpu = Clamp(absl::Nanoseconds(stamp.cpu_ns), ended - started);
  }
};

BubbleMeter::BubbleMeter(uint32_t stages, absl::Time now) : stages_(stages), work_since_(now) {
  MILLRACE_CHECK(stages > 0);
}

void BubbleMeter::SetClockOffset(uint32_t stage, absl::Duration offset) {
  if (stage < stages_.size()) stages_[stage].offset = offset;
}

void BubbleMeter::Accrue(absl::Time now) {
  const absl::Duration passed = std::max(now - work_since_, kZero);
  work_since_ = now;
  if (work_ == Work::kNone) waits_.no_work += passed;
  if (work_ == Work::kTooLittle) waits_.too_few += passed;
}

void BubbleMeter::OnLoad(absl::Time now, uint32_t live_sequences, uint32_t in_flight) {
  Accrue(now);
  const uint32_t needed = NeededInFlight();
  work_ = live_sequences == 0                             ? Work::kNone
          : live_sequences < needed && in_flight < needed ? Work::kTooLittle
                                                          : Work::kEnough;
}

void BubbleMeter::OnPlanned(const PlannedMicrobatch& planned) {
  Accrue(planned.time);
  in_flight_.push_back({planned, std::exchange(waits_, {}), planned.after_return ? last_returned_ : nullptr});
}

std::shared_ptr<const MicrobatchAccount> BubbleMeter::OnReturned(MicrobatchId id,
                                                                 absl::Span<const StageStamp> stamps,
                                                                 absl::Time now) {
  if (in_flight_.empty() || in_flight_.front().planned.id != id) return nullptr;
  const InFlight flight = std::move(in_flight_.front());
  in_flight_.pop_front();
  auto account = std::make_shared<MicrobatchAccount>();
  account->planned = flight.planned;
  account->returned = now;
  account->visits.resize(stages_.size());
  std::vector<StageUse>& bucket = BucketOf(now);
  for (uint32_t i = 0; i < stages_.size(); ++i) {
    if (i >= stamps.size()) {
      stages_[i].has_former = false;
      continue;
    }
    const StageUse use = AddVisit(i, flight, stamps[i], *account);
    stages_[i].total += use;
    bucket[i] += use;
  }
  if (stamps.size() >= stages_.size()) {
    absl::Duration at_stages;
    for (const StageVisit& visit : account->visits) at_stages += visit.sent - visit.received;
    const absl::Duration under_way = now - flight.planned.time;
    account->mean_hop = Clamp(under_way - at_stages, under_way) / static_cast<int64_t>(stages_.size());
    hops_.Observe(absl::ToDoubleSeconds(account->mean_hop));
    Smooth(*account);
  }
  last_returned_ = account;
  return account;
}

StageUse BubbleMeter::AddVisit(uint32_t index, const InFlight& flight, const StageStamp& stamp,
                               MicrobatchAccount& account) {
  Stage& stage = stages_[index];
  const absl::Duration under_way = std::max(account.returned - flight.planned.time, kZero);
  const OwnTimes own(stamp, under_way);
  const auto here = [&](absl::Duration time) { return absl::UnixEpoch() + (time - stage.offset); };
  StageVisit& visit = account.visits[index];
  visit.known = true;
  visit.received = here(own.received);
  visit.started = here(own.started);
  visit.ended = here(own.ended);
  visit.sent = here(own.sent);
  visit.preempted = own.ended - own.started - own.cpu;
  const absl::Time left = index == 0 ? flight.planned.time : account.visits[index - 1].sent;
  visit.on_the_way = Clamp(visit.received - left, under_way);
  if (stage.has_former) visit.idle = SplitGap(index, flight, own, account);
  stage.has_former = true;
  stage.former_ended = own.ended;
  stage.former_sent = own.sent;
  stage.former_planned = flight.planned.time;

  StageUse use;
  use.busy = own.ended - own.started;
  use.preempted = visit.preempted;
  use.on_the_way = visit.on_the_way;
  use.idle = visit.idle;
  use.microbatches = 1;
  use.rows = flight.planned.rows;
  return use;
}

// The rules in their order; docs/PIPELINE.md says why they come so.
IdleTime BubbleMeter::SplitGap(uint32_t index, const InFlight& flight, const OwnTimes& own,
                               const MicrobatchAccount& account) {
  Stage& stage = stages_[index];
  IdleTime idle;
  absl::Duration rest = Clamp(own.started - stage.former_ended, account.returned - stage.former_planned);
  const auto take = [&](IdleCause cause, absl::Duration amount) {
    const absl::Duration taken = Clamp(amount, rest);
    idle[cause] += taken;
    rest -= taken;
    return taken;
  };
  take(IdleCause::kNoWork, flight.waits.no_work);
  take(IdleCause::kBackPressured, stage.former_sent - stage.former_ended);
  take(IdleCause::kCommunication, own.started - std::max(own.received, stage.former_sent));
  if (own.received > stage.former_sent) {
    const absl::Time until = account.visits[index].received;
    take(IdleCause::kCommunication,
         Overlap(index, flight, account, until - (own.received - stage.former_sent), until));
  }
  take(IdleCause::kTooFewMicrobatches, flight.waits.too_few);
  stage.imbalance_credit -= take(IdleCause::kImbalance, stage.imbalance_credit);
  take(IdleCause::kStarved, rest);
  return idle;
}

// How much of [from, to] the microbatch that stage `index` waited for, and before it the one whose return led
// to it, was between stages.
absl::Duration BubbleMeter::Overlap(uint32_t index, const InFlight& flight, const MicrobatchAccount& account,
                                    absl::Time from, absl::Time to) const {
  absl::Duration sum;
  const auto add = [&](absl::Time begin, absl::Time end) {
    sum += std::max(std::min(end, to) - std::max(begin, from), kZero);
  };
  const auto add_hops = [&](const std::vector<StageVisit>& visits, size_t first, size_t last) {
    for (size_t i = first; i <= last; ++i) {
      if (visits[i - 1].known && visits[i].known) add(visits[i - 1].sent, visits[i].received);
    }
  };
  add(flight.planned.time, account.visits[0].received);
  add_hops(account.visits, 1, index);
  if (flight.after != nullptr) {
    const MicrobatchAccount& after = *flight.after;
    if (after.visits.back().known) add(after.visits.back().sent, after.returned);
    add(after.returned, flight.planned.time);
    add_hops(after.visits, index + 1, stages_.size() - 1);
  }
  return sum;
}

void BubbleMeter::Smooth(const MicrobatchAccount& account) {
  const bool first = returned_++ == 0;
  SmoothInto(mean_hop_, account.mean_hop, first);
  absl::Duration dearest;
  for (size_t i = 0; i < stages_.size(); ++i) {
    SmoothInto(stages_[i].mean_busy, account.visits[i].ended - account.visits[i].started, first);
    dearest = std::max(dearest, stages_[i].mean_busy);
  }
  for (size_t i = 0; i < stages_.size(); ++i) {
    Stage& stage = stages_[i];
    const double own = absl::ToDoubleSeconds(stage.mean_busy);
    const absl::Duration busy = account.visits[i].ended - account.visits[i].started;
    const absl::Duration more = own > 0 ? busy * (absl::ToDoubleSeconds(dearest) / own - 1) : kZero;
    stage.imbalance_credit =
        Clamp(stage.imbalance_credit + more,
              (dearest - stage.mean_busy) * std::max<int64_t>(1, account.planned.in_flight));
  }
}

uint32_t BubbleMeter::NeededInFlight() const {
  absl::Duration slowest;
  for (const Stage& stage : stages_) slowest = std::max(slowest, stage.mean_busy);
  const uint32_t stages = this->stages();
  if (slowest <= kZero) return stages;
  const double needed = std::ceil(stages * (1 + absl::FDivDuration(mean_hop_, slowest)));
  return std::max(stages, static_cast<uint32_t>(std::min<double>(needed, kMostNeeded)));
}

std::vector<StageUse>& BubbleMeter::BucketOf(absl::Time now) {
  if (buckets_.empty() || now >= buckets_.back().start + kBucket) {
    buckets_.push_back({now, std::vector<StageUse>(stages_.size())});
  }
  while (buckets_.front().start + kWindow <= now) buckets_.pop_front();
  return buckets_.back().use;
}

std::vector<StageUse> BubbleMeter::Window(absl::Time now) const {
  std::vector<StageUse> window(stages_.size());
  for (const Bucket& bucket : buckets_) {
    if (bucket.start + kWindow <= now) continue;
    for (size_t i = 0; i < stages_.size(); ++i) window[i] += bucket.use[i];
  }
  return window;
}

}  // namespace millrace
