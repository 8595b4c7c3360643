// How far the workers of a ring are with reading their weights, in one line for people.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"

namespace millrace {

class LoadingProgress {
 public:
  // A worker of the ring; `total` is 0 until it has told how many bytes it will read.
  void Add(uint64_t done, uint64_t total) {
    done_ += done;
    total_ += total;
    reading_ += total > 0 ? 1 : 0;
    ++workers_;
  }
  std::string Text() const {
    if (total_ == 0) return "loading";
    // Of what is known: without the number of workers, the first one to be done would look like the end.
    return absl::StrCat(
        "loading, ", done_ * 100 / total_, " % of the weights read",
        reading_ == workers_ ? "" : absl::StrCat(" by ", reading_, " of ", workers_, " workers"));
  }

 private:
  uint64_t done_ = 0, total_ = 0;
  size_t reading_ = 0, workers_ = 0;
};

}  // namespace millrace
