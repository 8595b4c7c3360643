#include "worker/device/cpu/shard_team.h"

#include "absl/strings/str_cat.h"
#include "common/process.h"

namespace millrace {

ShardTeam::ShardTeam(uint32_t shards) : size_(shards), begin_(shards), end_(shards) {
  for (uint32_t shard = 1; shard < shards; ++shard) {
    threads_.emplace_back([this, shard] {
      NameThread(absl::StrCat("shard-", shard).c_str());
      Serve(shard);
    });
  }
}

ShardTeam::~ShardTeam() {
  begin_.Close();
  for (std::thread& thread : threads_) thread.join();
}

void ShardTeam::Serve(uint32_t shard) {
  while (begin_.Wait()) {
    (*work_)(shard);
    end_.Wait();
  }
}

void ShardTeam::Run(absl::FunctionRef<void(uint32_t)> work) {
  if (size_ == 1) return work(0);
  work_ = &work;
  begin_.Wait();
  work(0);
  end_.Wait();
  work_ = nullptr;
}

}  // namespace millrace
