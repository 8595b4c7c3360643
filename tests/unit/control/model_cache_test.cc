#include "worker/control/model_cache.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>

#include "common/bounded_queue.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

bool Never() {
  return false;
}

absl::Span<const uint8_t> Bytes(const std::string& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

// Three chunks of a file of 3 MiB, with a gap before the last.
class ModelCacheTest : public ::testing::Test {
 protected:
  ModelCacheTest() {
    std::string name = ::testing::TempDir() + "model_cache_XXXXXX";
    folder_ = mkdtemp(name.data());
    manifest_.fingerprint = "one";
    manifest_.file_bytes = uint64_t{3} << 20;
    manifest_.header_chunks = 1;
    for (const uint64_t offset : {uint64_t{0}, uint64_t{1000}, uint64_t{2} << 20}) {
      manifest_.chunks.push_back({offset, 1000, Sha256Of(Bytes(Data(manifest_.chunks.size())))});
    }
  }
  ~ModelCacheTest() override { std::filesystem::remove_all(folder_); }

  static std::string Data(size_t chunk) { return std::string(1000, static_cast<char>('a' + chunk)); }

  // Locked.
  std::unique_ptr<ModelCache> Open() {
    absl::StatusOr<std::unique_ptr<ModelCache>> cache = ModelCache::Open(folder_ + "/a/b", manifest_);
    EXPECT_TRUE(cache.ok()) << cache.status();
    EXPECT_TRUE((*cache)->Lock(Never).ok());
    return *std::move(cache);
  }

  std::string folder_;
  ModelManifest manifest_;
};

TEST_F(ModelCacheTest, KeepsChunksAcrossProcesses) {
  std::string path;
  {
    const std::unique_ptr<ModelCache> cache = Open();
    path = cache->path();
    for (uint32_t chunk = 0; chunk < 3; ++chunk) EXPECT_FALSE(cache->Has(chunk));
    EXPECT_TRUE(cache->Store(2, Data(2)).ok());
    EXPECT_TRUE(cache->Store(0, Data(0)).ok());
    EXPECT_TRUE(cache->Sync().ok());
  }
  const std::unique_ptr<ModelCache> cache = Open();
  EXPECT_TRUE(cache->Has(0));
  EXPECT_FALSE(cache->Has(1));
  EXPECT_TRUE(cache->Has(2));
  EXPECT_TRUE(*cache->Check(0));
  EXPECT_TRUE(*cache->Check(2));
  struct stat state = {};
  ASSERT_EQ(stat(path.c_str(), &state), 0);
  EXPECT_EQ(static_cast<uint64_t>(state.st_size), manifest_.file_bytes);
  EXPECT_LT(static_cast<uint64_t>(state.st_blocks) * 512, manifest_.file_bytes / 2)
      << "the file is not sparse";
  EXPECT_EQ(state.st_mode & 0777, 0600u);
}

TEST_F(ModelCacheTest, NoticesDamageOnDisk) {
  std::unique_ptr<ModelCache> cache = Open();
  ASSERT_TRUE(cache->Store(1, Data(1)).ok());
  {
    std::fstream file(cache->path(), std::ios::in | std::ios::out);
    file.seekp(1999);
    file.put('x');
  }
  EXPECT_FALSE(*cache->Check(1));
  EXPECT_FALSE(cache->Has(1));
  cache.reset();
  cache = Open();
  EXPECT_FALSE(cache->Has(1)) << "what is damaged must be struck from the journal on disk, too";
  EXPECT_TRUE(cache->Store(1, Data(1)).ok());
  EXPECT_TRUE(*cache->Check(1));
}

TEST_F(ModelCacheTest, RefusesDamagedChunks) {
  const std::unique_ptr<ModelCache> cache = Open();
  const absl::Status wrong = cache->Store(1, Data(0));
  EXPECT_EQ(wrong.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(wrong.message()),
              HasSubstr("chunk 1 of the model (bytes 1000 to 1999) came damaged"));
  EXPECT_EQ(cache->Store(1, Data(1).substr(1)).code(), absl::StatusCode::kDataLoss);
  EXPECT_FALSE(cache->Has(1));
}

// Whatever the journal says, without a file of the right size nothing is there.
TEST_F(ModelCacheTest, BeginsAnewWhereFilesDoNotFit) {
  for (const bool journal : {true, false}) {
    std::string path;
    {
      const std::unique_ptr<ModelCache> cache = Open();
      ASSERT_TRUE(cache->Store(0, Data(0)).ok());
      path = cache->path();
    }
    if (journal) {
      std::filesystem::path chunks(path);
      std::filesystem::resize_file(chunks.replace_extension(".chunks"), 9);
    } else {
      std::filesystem::resize_file(path, 5);
    }
    const std::unique_ptr<ModelCache> cache = Open();
    EXPECT_FALSE(cache->Has(0));
    EXPECT_EQ(std::filesystem::file_size(path), manifest_.file_bytes);
  }
}

TEST_F(ModelCacheTest, OtherModelsHaveOtherFiles) {
  const std::unique_ptr<ModelCache> cache = Open();
  ASSERT_TRUE(cache->Store(0, Data(0)).ok());
  manifest_.fingerprint = "two";
  const std::unique_ptr<ModelCache> other = Open();
  EXPECT_NE(other->path(), cache->path());
  EXPECT_FALSE(other->Has(0));
}

// flock is held by an open file, so two caches of one process are like two processes.
TEST_F(ModelCacheTest, SharersTakeTurns) {
  const std::unique_ptr<ModelCache> cache = Open();
  absl::StatusOr<std::unique_ptr<ModelCache>> other = ModelCache::Open(folder_ + "/a/b", manifest_);
  ASSERT_TRUE(other.ok());
  EXPECT_TRUE(absl::IsCancelled((*other)->Lock(Never)));
  BoundedQueue<int> waiting(1000);
  std::thread thread([&] {
    EXPECT_TRUE((*other)->Lock([&] { return waiting.Push(1); }).ok());
    EXPECT_TRUE((*other)->Has(0)) << "the journal is read again under the lock";
    (*other)->Unlock();
  });
  waiting.Pop();
  EXPECT_TRUE(cache->Store(0, Data(0)).ok());
  cache->Unlock();
  thread.join();
}

TEST_F(ModelCacheTest, SaysWhatTheDiskLacks) {
  const std::unique_ptr<ModelCache> cache = Open();
  EXPECT_TRUE(cache->CheckRoom(1).ok());
  const absl::Status full = cache->CheckRoom(uint64_t{1} << 60);
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(full.message()), HasSubstr("--model-cache"));
  std::ofstream(folder_ + "/file").put('x');
  const absl::Status no_folder = ModelCache::Open(folder_ + "/file/b", manifest_).status();
  EXPECT_THAT(std::string(no_folder.message()), HasSubstr("cannot make the folder"));
}

TEST(DefaultModelCache, FollowsXdgAndHome) {
  setenv("HOME", "/home/someone", 1);
  unsetenv("XDG_CACHE_HOME");
  EXPECT_EQ(DefaultModelCache(), "/home/someone/.cache/millrace/models");
  setenv("XDG_CACHE_HOME", "relative", 1);
  EXPECT_EQ(DefaultModelCache(), "/home/someone/.cache/millrace/models");
  setenv("XDG_CACHE_HOME", "/cache", 1);
  EXPECT_EQ(DefaultModelCache(), "/cache/millrace/models");
  unsetenv("XDG_CACHE_HOME");
  unsetenv("HOME");
  EXPECT_EQ(DefaultModelCache(), "");
}

}  // namespace
}  // namespace millrace
