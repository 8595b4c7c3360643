#include "nccl_clique.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace cuda_on_cpu::internal {

void NcclMisuse(const std::string& what) {
  std::fprintf(stderr, "NCCL on the CPU: %s\n", what.c_str());
  std::abort();
}

bool NcclClique::Join(int rank, int device) {
  const Lock lock(mutex_);
  if (devices_[rank] >= 0 || std::ranges::find(devices_, device) != devices_.end()) return false;
  devices_[rank] = device;
  return true;
}

bool NcclClique::complete() {
  const Lock lock(mutex_);
  return std::ranges::find(devices_, -1) == devices_.end();
}

void NcclClique::Abort(int rank) {
  const Lock lock(mutex_);
  aborted_[rank] = true;
  changed_.notify_all();
}

void NcclClique::WaitWhile(int rank, bool (*hangs)(int rank)) {
  Lock lock(mutex_);
  // Faults are cleared without a word to those that wait.
  while (!aborted_[rank] && hangs(rank)) changed_.wait_for(lock, std::chrono::milliseconds(1));
}

void NcclClique::Run(int rank, const std::vector<NcclOp>& ops) {
  Lock lock(mutex_);
  std::vector<std::pair<int, std::shared_ptr<Message>>> sent;
  for (const NcclOp& op : ops) {
    if (op.kind != NcclOp::Kind::kSend) continue;
    sent.emplace_back(op.peer, std::make_shared<Message>(Message{op.from, op.count}));
    messages_[{rank, op.peer}].push_back(sent.back().second);
  }
  changed_.notify_all();
  bool going = true;
  for (const NcclOp& op : ops) {
    if (op.kind == NcclOp::Kind::kReceive) going = going && Receive(lock, rank, op);
    if (op.kind == NcclOp::Kind::kAllGather || op.kind == NcclOp::Kind::kAllReduce) {
      going = going && Meet(lock, rank, op);
    }
  }
  for (const auto& [peer, message] : sent) {
    changed_.wait(lock, [&, &message = message] { return message->taken || aborted_[rank]; });
    // Nobody reads memory that its owner has taken back.
    if (!message->taken) std::erase(messages_[{rank, peer}], message);
  }
}

bool NcclClique::Receive(Lock& lock, int rank, const NcclOp& op) {
  auto& queue = messages_[{op.peer, rank}];
  changed_.wait(lock, [&] { return !queue.empty() || aborted_[rank]; });
  if (aborted_[rank]) return false;
  const std::shared_ptr<Message> message = queue.front();
  queue.pop_front();
  if (message->count != op.count) {
    NcclMisuse("rank " + std::to_string(rank) + " receives " + std::to_string(op.count) + " floats of " +
               std::to_string(message->count) + " that rank " + std::to_string(op.peer) + " sends");
  }
  std::memcpy(op.to, message->from, op.count * sizeof(float));
  message->taken = true;
  changed_.notify_all();
  return true;
}

bool NcclClique::Meet(Lock& lock, int rank, const NcclOp& op) {
  const uint64_t number = next_collective_[rank]++;
  Collective& all = collectives_[number];
  all.ops.resize(size_);
  for (const NcclOp* other : all.ops) {
    if (other != nullptr && (other->kind != op.kind || other->count != op.count)) {
      NcclMisuse("ranks differ in what collective " + std::to_string(number) + " is, or in its count");
    }
  }
  all.ops[rank] = &op;
  if (++all.arrived == size_ && op.kind == NcclOp::Kind::kAllReduce) AddAll(all);
  changed_.notify_all();
  changed_.wait(lock, [&] { return (all.arrived == size_ && !all.broken) || aborted_[rank]; });
  if (!aborted_[rank]) Finish(rank, op, all);
  ++all.left;
  changed_.notify_all();
  // Others may still read this rank's memory.
  changed_.wait(lock, [&] { return all.left >= size_ || aborted_[rank]; });
  all.broken = all.broken || aborted_[rank];
  if (++all.left == 2 * size_) collectives_.erase(number);
  return !aborted_[rank];
}

// Another rank first for every element.
void NcclClique::AddAll(Collective& all) const {
  const size_t count = all.ops[0]->count;
  all.sum.resize(count);
  for (size_t i = 0; i < count; ++i) {
    float sum = 0.0f;
    for (int r = 0; r < size_; ++r) {
      const float value = static_cast<const float*>(all.ops[(i + r) % size_]->from)[i];
      sum = r == 0 ? value : sum + value;
    }
    all.sum[i] = sum;
  }
}

void NcclClique::Finish(int rank, const NcclOp& op, const Collective& all) const {
  const size_t bytes = op.count * sizeof(float);
  if (op.kind == NcclOp::Kind::kAllReduce) {
    std::memcpy(op.to, all.sum.data(), bytes);
    return;
  }
  for (int r = 0; r < size_; ++r) {
    uint8_t* to = static_cast<uint8_t*>(op.to) + r * bytes;
    if (r == rank && op.from == to) continue;
    std::memmove(to, all.ops[r]->from, bytes);
  }
}

}  // namespace cuda_on_cpu::internal
