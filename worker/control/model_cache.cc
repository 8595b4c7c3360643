#include "worker/control/model_cache.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/options.h"
#include "common/status_macros.h"

namespace millrace {
namespace {

constexpr absl::string_view kJournalMagic = "MLRCHNK1";
constexpr std::chrono::milliseconds kLockPause{100};

bool WriteAll(int file, absl::string_view data, uint64_t offset) {
  while (!data.empty()) {
    const ssize_t written = pwrite(file, data.data(), data.size(), static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return false;
    data.remove_prefix(static_cast<size_t>(written));
    offset += static_cast<uint64_t>(written);
  }
  return true;
}

// What is there, which may be less than `size`; negative: an error.
ssize_t ReadAll(int file, char* data, size_t size, uint64_t offset) {
  size_t done = 0;
  while (done < size) {
    const ssize_t got = pread(file, data + done, size - done, static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return -1;
    if (got == 0) break;
    done += static_cast<size_t>(got);
  }
  return static_cast<ssize_t>(done);
}

bool IsOpenUnder(int file, const std::string& path) {
  struct stat open_one = {};
  struct stat named_one = {};
  return fstat(file, &open_one) == 0 && lstat(path.c_str(), &named_one) == 0 &&
         open_one.st_dev == named_one.st_dev && open_one.st_ino == named_one.st_ino;
}

absl::Span<const uint8_t> Bytes(absl::string_view data) {
  return {reinterpret_cast<const uint8_t*>(data.data()), data.size()};
}

}  // namespace

std::string DefaultModelCache() {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  if (cache != nullptr && *cache == '/') return absl::StrCat(cache, "/millrace/models");
  const char* home = std::getenv("HOME");
  if (home != nullptr && *home == '/') return absl::StrCat(home, "/.cache/millrace/models");
  return "";
}

ModelCache::ModelCache(std::string folder, const ModelManifest& manifest)
    : folder_(std::move(folder)), manifest_(manifest) {
  const std::string name = absl::StrCat(folder_, "/", ManifestDigest(manifest));
  path_ = name + ".gguf";
  journal_path_ = name + ".chunks";
}

ModelCache::~ModelCache() {
  CloseFiles();
}

void ModelCache::CloseFiles() {
  for (int* file : {&file_, &journal_file_}) {
    if (*file >= 0) close(*file);
    *file = -1;
  }
}

absl::Status ModelCache::Error(int error, absl::string_view what, const std::string& path) const {
  if (error == ENOSPC || error == EDQUOT || error == EFBIG) {
    return absl::ResourceExhaustedError(
        absl::StrCat(path, ": cannot ", what, ": ", strerror(error),
                     "; free space, or name another folder with --model-cache"));
  }
  return absl::ErrnoToStatus(
      error, absl::StrCat(path, ": cannot ", what, "; --model-cache must name a folder that can be written"));
}

absl::StatusOr<std::unique_ptr<ModelCache>> ModelCache::Open(const std::string& folder,
                                                             const ModelManifest& manifest) {
  std::unique_ptr<ModelCache> cache(new ModelCache(folder, manifest));
  RETURN_IF_ERROR(cache->OpenFiles());
  return cache;
}

absl::Status ModelCache::OpenFiles() {
  std::error_code error;
  if (std::filesystem::create_directories(folder_, error)) (void)chmod(folder_.c_str(), 0700);
  if (error) return Error(error.value(), "make the folder", folder_);
  constexpr int kFlags = O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW;
  journal_file_ = open(journal_path_.c_str(), kFlags, 0600);
  if (journal_file_ < 0) return Error(errno, "open", journal_path_);
  file_ = open(path_.c_str(), kFlags, 0600);
  if (file_ < 0) return Error(errno, "open", path_);
  return absl::OkStatus();
}

absl::Status ModelCache::Lock(const std::function<bool()>& keep_waiting) {
  RETURN_IF_ERROR(LockJournal(keep_waiting));
  // A lock on files that were removed keeps nobody from those that have their names now.
  if (!IsOpenUnder(journal_file_, journal_path_) || !IsOpenUnder(file_, path_)) {
    CloseFiles();
    ++generation_;
    RETURN_IF_ERROR(OpenFiles());
    RETURN_IF_ERROR(LockJournal(keep_waiting));
  }
  const absl::Status status = ReadJournal();
  if (!status.ok()) Unlock();
  return status;
}

absl::Status ModelCache::LockJournal(const std::function<bool()>& keep_waiting) {
  while (flock(journal_file_, LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK && errno != EINTR) return Error(errno, "lock", journal_path_);
    if (!keep_waiting()) return absl::CancelledError("stopped");
    std::this_thread::sleep_for(kLockPause);
  }
  return absl::OkStatus();
}

void ModelCache::Unlock() {
  (void)flock(journal_file_, LOCK_UN);
}

// Anything that is not a journal of this manifest begins anew: the file may hold anything then.
absl::Status ModelCache::ReadJournal() {
  const size_t size = kJournalMagic.size() + manifest_.chunks.size();
  struct stat file = {};
  struct stat journal = {};
  if (fstat(file_, &file) != 0) return Error(errno, "examine", path_);
  if (fstat(journal_file_, &journal) != 0) return Error(errno, "examine", journal_path_);
  std::string text(size, '\0');
  const bool whole = static_cast<uint64_t>(file.st_size) == manifest_.file_bytes &&
                     static_cast<uint64_t>(journal.st_size) == size &&
                     ReadAll(journal_file_, text.data(), size, 0) == static_cast<ssize_t>(size) &&
                     text.compare(0, kJournalMagic.size(), kJournalMagic.data(), kJournalMagic.size()) == 0;
  if (!whole) {
    text.assign(size, '\0');
    text.replace(0, kJournalMagic.size(), kJournalMagic.data(), kJournalMagic.size());
    // The journal first, so that it never says more than the file has.
    if (ftruncate(journal_file_, 0) != 0 || !WriteAll(journal_file_, text, 0)) {
      return Error(errno, "write", journal_path_);
    }
    // It keeps what it has: another process may have mapped it, and would die of pages that are gone.
    if (ftruncate(file_, static_cast<off_t>(manifest_.file_bytes)) != 0) {
      return Error(errno, "make as large as the model", path_);
    }
  }
  journal_ = text.substr(kJournalMagic.size());
  return absl::OkStatus();
}

absl::Status ModelCache::Mark(uint32_t chunk, uint8_t present) {
  const char byte = static_cast<char>(present);
  if (!WriteAll(journal_file_, {&byte, 1}, kJournalMagic.size() + chunk)) {
    return Error(errno, "write", journal_path_);
  }
  journal_[chunk] = byte;
  return absl::OkStatus();
}

absl::StatusOr<bool> ModelCache::Check(uint32_t chunk) {
  const ModelChunk& wanted = manifest_.chunks[chunk];
  std::string data(wanted.size, '\0');
  const ssize_t got = ReadAll(file_, data.data(), data.size(), wanted.offset);
  if (got < 0) return Error(errno, "read", path_);
  if (got == static_cast<ssize_t>(data.size()) && Sha256Of(Bytes(data)) == wanted.sha256) return true;
  RETURN_IF_ERROR(Mark(chunk, 0));
  return false;
}

absl::Status ModelCache::Store(uint32_t chunk, absl::string_view data) {
  const ModelChunk& wanted = manifest_.chunks[chunk];
  if (data.size() != wanted.size || Sha256Of(Bytes(data)) != wanted.sha256) {
    return absl::DataLossError(absl::StrCat("chunk ", chunk, " of the model (bytes ", wanted.offset, " to ",
                                            wanted.offset + wanted.size - 1, ") came damaged"));
  }
  if (!WriteAll(file_, data, wanted.offset)) return Error(errno, "write", path_);
  return Mark(chunk, 1);
}

absl::Status ModelCache::CheckRoom(uint64_t bytes) const {
  struct statvfs state = {};
  if (fstatvfs(file_, &state) != 0) return Error(errno, "examine", path_);
  const uint64_t free = uint64_t{state.f_bavail} * state.f_frsize;
  if (bytes <= free) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat(folder_, ": the model's parts for this worker need ", FormatBytes(bytes), ", and ",
                   FormatBytes(free), " are free; free space, or name another folder with --model-cache"));
}

absl::Status ModelCache::Sync() {
  return fdatasync(file_) == 0 ? absl::OkStatus() : Error(errno, "write", path_);
}

}  // namespace millrace
