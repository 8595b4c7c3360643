#include "race_detector.h"

#include <dlfcn.h>

#include <bit>
#include <cstdint>
#include <mutex>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "fibers.h"

namespace cuda_on_cpu {
namespace {

using internal::Access;
using internal::BlockRunner;
using internal::kWarpLanes;
using internal::Lane;

// Reads of one warp since the last barrier of the block.
struct Readers {
  uint64_t block_epoch = 0;
  uint32_t warp = 0;
  uint32_t warp_epoch = 0;
  uint32_t lanes = 0;  // that read in warp_epoch
  const void* at = nullptr;
};

// What is known of one byte: the last write, and the reads of the two warps that read it last. More are not
// needed: of three warps that read, two are not the writer's.
struct Shadow {
  uint64_t write_epoch = 0;
  uint32_t write_warp = 0;
  uint32_t write_warp_epoch = 0;
  uint32_t write_lane = 0;
  bool write_atomic = false;
  const void* write_at = nullptr;
  Readers latest;
  Readers before;
};

struct Reports {
  std::mutex mutex;
  std::set<std::pair<const void*, const void*>> seen;
  std::vector<std::string> races;
};

Reports& AllReports() {
  static Reports reports;
  return reports;
}

std::string CodePlace(const void* at) {
  Dl_info info;
  if (dladdr(at, &info) == 0) return absl::StrFormat("%p", at);
  const auto offset = reinterpret_cast<uintptr_t>(at) - reinterpret_cast<uintptr_t>(info.dli_fbase);
  return absl::StrFormat("%s+0x%x", info.dli_fname, offset);
}

struct Now {
  const Lane* lane;
  uint64_t block_epoch;
  uint32_t warp;
  const void* at;
  size_t byte;  // from the start of shared memory
};

void Report(const Now& now, const char* mine, const char* theirs, const void* at) {
  Reports& reports = AllReports();
  const std::lock_guard lock(reports.mutex);
  if (!reports.seen.emplace(now.at, at).second) return;
  reports.races.push_back(absl::StrCat(DescribePlace(), ": ", mine, " of byte ", now.byte,
                                       " of shared memory at ", CodePlace(now.at), " is not ordered with a ",
                                       theirs, " by another thread at ", CodePlace(at)));
}

// Whether `readers` has a read by another thread that is not ordered before `now`.
bool Unordered(const Readers& readers, const Now& now) {
  if (readers.block_epoch != now.block_epoch) return false;
  if (readers.warp != now.warp) return true;
  return readers.warp_epoch == now.lane->warp->epoch && (readers.lanes & ~now.lane->bit) != 0;
}

void CheckAgainstWrite(const Shadow& shadow, const Now& now, Access access) {
  if (shadow.write_epoch != now.block_epoch) return;
  if (shadow.write_atomic && access == Access::kAtomic) return;
  if (shadow.write_warp == now.warp) {
    if (shadow.write_warp_epoch != now.lane->warp->epoch) return;
    if (shadow.write_lane == now.lane->bit && access != Access::kReadByWarp) return;
  }
  const bool read = access == Access::kRead || access == Access::kReadByWarp;
  Report(now, read ? "a read" : "a write", "write", shadow.write_at);
}

void NoteRead(Shadow* shadow, const Now& now, Access access) {
  CheckAgainstWrite(*shadow, now, access);
  Readers& latest = shadow->latest;
  const uint32_t lanes = access == Access::kReadByWarp ? ~0u : now.lane->bit;
  if (latest.block_epoch == now.block_epoch && latest.warp != now.warp) shadow->before = latest;
  if (latest.block_epoch != now.block_epoch || latest.warp != now.warp ||
      latest.warp_epoch != now.lane->warp->epoch) {
    latest = {now.block_epoch, now.warp, now.lane->warp->epoch, 0, now.at};
  }
  latest.lanes |= lanes;
}

void NoteWrite(Shadow* shadow, const Now& now, Access access) {
  CheckAgainstWrite(*shadow, now, access);
  for (const Readers* readers : {&shadow->latest, &shadow->before}) {
    if (Unordered(*readers, now)) Report(now, "a write", "read", readers->at);
  }
  shadow->write_epoch = now.block_epoch;
  shadow->write_warp = now.warp;
  shadow->write_warp_epoch = now.lane->warp->epoch;
  shadow->write_lane = now.lane->bit;
  shadow->write_atomic = access == Access::kAtomic;
  shadow->write_at = now.at;
}

void Observe(const void* address, size_t bytes, Access access, const void* at) {
  if (current_thread == nullptr) return;
  const BlockPlace& block = *current_thread->block;
  const size_t first = reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(block.shared);
  if (first >= block.shared_bytes) return;
  thread_local std::vector<Shadow> shadow;
  if (shadow.size() < block.shared_bytes) shadow.resize(block.shared_bytes);
  const dim3& size = block.block_dim;
  const uint3& index = current_thread->thread_index;
  const unsigned thread = index.x + size.x * (index.y + size.y * index.z);
  Now now = {static_cast<const Lane*>(current_thread), BlockRunner::Running().epoch(), thread / kWarpLanes,
             at, first};
  for (size_t i = 0; i < bytes; ++i, ++now.byte) {
    if (access == Access::kRead || access == Access::kReadByWarp) {
      NoteRead(&shadow[now.byte], now, access);
    } else {
      NoteWrite(&shadow[now.byte], now, access);
    }
  }
}

[[maybe_unused]] const bool installed = [] {
  internal::shared_access_observer = Observe;
  return true;
}();

}  // namespace

std::vector<std::string> TakeRaces() {
  Reports& reports = AllReports();
  const std::lock_guard lock(reports.mutex);
  reports.seen.clear();
  return std::exchange(reports.races, {});
}

}  // namespace cuda_on_cpu
