// The part of a model file that a worker has been sent, on disk: a sparse file of the model's size, and a
// journal of which chunks of it are there.
//
// Both are named by the digest of the model's manifest, so that a file of another model is never taken for
// it. The journal is only ever behind the file: a process that is killed at any point loses at most the chunk
// it was writing. It is not believed blindly, either: Check reads a chunk back and compares its hash.
//
// Processes that share the folder take turns by a lock on the journal.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/model_chunks.h"

namespace millrace {

// $XDG_CACHE_HOME/millrace/models, or ~/.cache/millrace/models; empty: neither is known.
std::string DefaultModelCache();

// Thread: one at a time.
class ModelCache {
 public:
  // Makes the folder (mode 0700) and the files where they are missing. `manifest` outlives this.
  // PERMISSION_DENIED, RESOURCE_EXHAUSTED, ...: as the file system says, with the path.
  static absl::StatusOr<std::unique_ptr<ModelCache>> Open(const std::string& folder,
                                                          const ModelManifest& manifest);
  ~ModelCache();
  ModelCache(const ModelCache&) = delete;
  ModelCache& operator=(const ModelCache&) = delete;

  // Of the model's bytes; anything where nothing was sent yet.
  const std::string& path() const { return path_; }

  // Waits until no other process has the lock, then reads the journal again. CANCELLED: `keep_waiting`,
  // called about ten times a second, returned false. Files that somebody removed are made anew: see
  // generation.
  absl::Status Lock(const std::function<bool()>& keep_waiting);
  void Unlock();

  // Changes when Lock found other files than those before: nothing that was known of those holds any more,
  // and mappings of `path` are not of the new one.
  int generation() const { return generation_; }

  // All below REQUIRE the lock.

  // Whether the journal has the chunk.
  bool Has(uint32_t chunk) const { return journal_[chunk] != 0; }

  // Reads the chunk back. False: it is not what the manifest says, and was struck from the journal. An error:
  // the file could not be read.
  absl::StatusOr<bool> Check(uint32_t chunk);

  // Writes the chunk, then its line of the journal. DATA_LOSS: `data` is not what the manifest says.
  // RESOURCE_EXHAUSTED: the disk is full.
  absl::Status Store(uint32_t chunk, absl::string_view data);

  // RESOURCE_EXHAUSTED: fewer than `bytes` are free for this process. One line that says what to do.
  absl::Status CheckRoom(uint64_t bytes) const;

  // Waits until what was stored is on the disk. An error: it is not.
  absl::Status Sync();

 private:
  ModelCache(std::string folder, const ModelManifest& manifest);
  absl::Status OpenFiles();
  void CloseFiles();
  absl::Status LockJournal(const std::function<bool()>& keep_waiting);
  absl::Status ReadJournal();
  absl::Status Mark(uint32_t chunk, uint8_t present);
  absl::Status Error(int error, absl::string_view what, const std::string& path) const;

  const std::string folder_;
  const ModelManifest& manifest_;
  std::string path_;
  std::string journal_path_;
  int file_ = -1;
  int journal_file_ = -1;
  int generation_ = 0;
  std::string journal_;  // a byte for each chunk: 1 if it is there
};

}  // namespace millrace
