#include "worker/control/model_fetch.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>

#include "common/mutex.h"
#include "gmock/gmock.h"
#include "grpc/grpc.h"
#include "gtest/gtest.h"
#include "tests/testing/tiny_llama.h"

namespace millrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

using Writer = grpc::ServerWriter<v1::ModelChunk>;

// Answers as a coordinator that sends `bytes`, but for what a test changes.
class FakeSource final : public v1::Cluster::Service {
 public:
  explicit FakeSource(std::vector<uint8_t> bytes)
      : bytes_(std::move(bytes)),
        file_(*GgufFile::Parse(bytes_, "model")),
        manifest_(*MakeManifest(*file_, 1)) {
    wire_.set_model_fingerprint(manifest_.fingerprint);
    wire_.set_file_bytes(manifest_.file_bytes);
    wire_.set_header_chunks(manifest_.header_chunks);
    for (const ModelChunk& chunk : manifest_.chunks) {
      wire_.add_offsets(chunk.offset);
      wire_.add_sizes(chunk.size);
      wire_.mutable_sha256()->append(chunk.sha256.begin(), chunk.sha256.end());
    }
  }

  grpc::Status GetModelManifest(grpc::ServerContext*, const v1::ModelManifestRequest*,
                                v1::ModelManifest* answer) override {
    MutexLock lock(&mutex_);
    *answer = wire_;
    return grpc::Status::OK;
  }

  grpc::Status FetchModel(grpc::ServerContext* context, const v1::FetchModelRequest* request,
                          Writer* writer) override {
    const std::vector<uint32_t> chunks(request->chunks().begin(), request->chunks().end());
    MutexLock lock(&mutex_);
    asked_.push_back(chunks);
    if (fetch_) return fetch_(context, chunks, writer);
    for (const uint32_t chunk : chunks) writer->Write(Message(chunk));
    return grpc::Status::OK;
  }

  // Runs under the lock: one call at a time.
  void Script(
      std::function<grpc::Status(grpc::ServerContext*, const std::vector<uint32_t>&, Writer*)> fetch) {
    MutexLock lock(&mutex_);
    fetch_ = std::move(fetch);
  }
  void SpoilManifest() {
    MutexLock lock(&mutex_);
    wire_.mutable_sha256()->pop_back();
  }
  // What calls asked for since the last time.
  std::vector<std::vector<uint32_t>> TakeAsked() {
    MutexLock lock(&mutex_);
    return std::exchange(asked_, {});
  }

  v1::ModelChunk Message(uint32_t chunk) const {
    v1::ModelChunk message;
    message.set_chunk(chunk);
    message.set_data(bytes_.data() + manifest_.chunks[chunk].offset, manifest_.chunks[chunk].size);
    return message;
  }
  ByteRange TensorRange(const std::string& name) const {
    return RangeInFile(*file_, file_->FindTensor(name)->bytes);
  }

  const std::vector<uint8_t> bytes_;
  const std::unique_ptr<GgufFile> file_;
  const ModelManifest manifest_;

 private:
  Mutex mutex_;
  v1::ModelManifest wire_ ABSL_GUARDED_BY(mutex_);
  std::function<grpc::Status(grpc::ServerContext*, const std::vector<uint32_t>&, Writer*)> fetch_
      ABSL_GUARDED_BY(mutex_);
  std::vector<std::vector<uint32_t>> asked_ ABSL_GUARDED_BY(mutex_);
};

// Its embedding takes five chunks, each other tensor one.
class ModelFetchTest : public ::testing::Test {
 protected:
  // Without it the end of a test may be that of gRPC as a whole, which sometimes takes ten seconds.
  static void SetUpTestSuite() { grpc_init(); }
  ModelFetchTest() : source_(BuildTinyLlama({.layers = 2, .vocabulary = 20000, .rope_freqs = true})) {
    std::string name = ::testing::TempDir() + "model_fetch_XXXXXX";
    folder_ = mkdtemp(name.data());
    Serve();
    options_.coordinator_address = "unix:" + folder_ + "/coordinator";
    options_.manifest_sha256 = ManifestDigest(source_.manifest_);
    options_.fingerprint = source_.manifest_.fingerprint;
    options_.folder = folder_ + "/cache";
    options_.interrupter = &interrupter_;
  }
  ~ModelFetchTest() override {
    if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now());
    server_.reset();
    std::filesystem::remove_all(folder_);
  }

  void Serve() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("unix:" + folder_ + "/coordinator", grpc::InsecureServerCredentials());
    builder.RegisterService(&source_);
    builder.SetSyncServerOption(grpc::ServerBuilder::CQ_TIMEOUT_MSEC, 20);  // its end waits for that
    server_ = builder.BuildAndStart();
    ASSERT_NE(server_, nullptr);
  }

  std::unique_ptr<ModelFetch> Open() {
    absl::StatusOr<std::unique_ptr<ModelFetch>> fetch = ModelFetch::Open(options_);
    EXPECT_TRUE(fetch.ok()) << fetch.status();
    source_.TakeAsked();
    return *std::move(fetch);
  }

  void ExpectHas(ModelFetch& fetch, const std::string& name) {
    const absl::StatusOr<std::unique_ptr<GgufFile>> file = fetch.OpenFile();
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_EQ((*file)->FindTensor(name)->bytes, source_.file_->FindTensor(name)->bytes) << name;
  }

  FakeSource source_;
  std::unique_ptr<grpc::Server> server_;
  std::string folder_;
  FetchInterrupter interrupter_;
  ModelFetchOptions options_;
};

TEST_F(ModelFetchTest, GoesOnWhereATransferBroke) {
  const std::unique_ptr<ModelFetch> fetch = Open();
  int calls = 0;
  source_.Script([&](grpc::ServerContext*, const std::vector<uint32_t>& chunks, Writer* writer) {
    switch (++calls) {
      case 1:
        writer->Write(source_.Message(chunks[0]));
        writer->Write(source_.Message(chunks[1]));
        return grpc::Status(grpc::StatusCode::UNAVAILABLE, "broken");
      case 2: {
        v1::ModelChunk damaged = source_.Message(chunks[0]);
        damaged.mutable_data()->front() ^= 1;
        writer->Write(damaged);
        return grpc::Status::OK;
      }
      case 3:
        writer->Write(source_.Message(chunks[1]));
        return grpc::Status::OK;
      case 4:
        writer->Write(source_.Message(chunks[0]));
        return grpc::Status::OK;
      default:
        for (const uint32_t chunk : chunks) writer->Write(source_.Message(chunk));
        return grpc::Status::OK;
    }
  });
  const ByteRange range = source_.TensorRange("token_embd.weight");
  const absl::StatusOr<bool> fetched = fetch->Need("stage 0", {&range, 1});
  ASSERT_TRUE(fetched.ok()) << fetched.status();
  EXPECT_TRUE(*fetched);
  EXPECT_THAT(source_.TakeAsked(), ElementsAre(SizeIs(5), SizeIs(3), SizeIs(3), SizeIs(3), SizeIs(2)));
  ExpectHas(*fetch, "token_embd.weight");
  EXPECT_FALSE(*fetch->Need("stage 0", {&range, 1}));
}

TEST_F(ModelFetchTest, GivesUpOnASourceOfDamage) {
  const std::unique_ptr<ModelFetch> fetch = Open();
  source_.Script([&](grpc::ServerContext*, const std::vector<uint32_t>& chunks, Writer* writer) {
    v1::ModelChunk damaged = source_.Message(chunks[0]);
    damaged.mutable_data()->pop_back();
    writer->Write(damaged);
    return grpc::Status::OK;
  });
  const ByteRange range = source_.TensorRange("token_embd.weight");
  const absl::Status status = fetch->Need("stage 0", {&range, 1}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("(5 of 5 chunks are still to come)"));
  EXPECT_THAT(source_.TakeAsked(), SizeIs(3));
}

TEST_F(ModelFetchTest, WaitsForAConnection) {
  const std::unique_ptr<ModelFetch> fetch = Open();
  server_->Shutdown(std::chrono::system_clock::now());
  server_.reset();
  std::atomic<int> turns{0};
  options_.on_turn = [&] { ++turns; };
  absl::StatusOr<std::unique_ptr<ModelFetch>> late = absl::UnknownError("");
  std::atomic<bool> over{false};
  std::thread other([&] {
    late = ModelFetch::Open(options_);
    over = true;
  });
  while (turns < 4 && !over) std::this_thread::yield();
  Serve();
  other.join();
  EXPECT_TRUE(late.ok()) << late.status();
  // The first one's connection has ended meanwhile.
  const ByteRange range = source_.TensorRange("token_embd.weight");
  EXPECT_TRUE(fetch->Need("stage 0", {&range, 1}).ok());
}

TEST_F(ModelFetchTest, SilenceAndInterruptionEndIt) {
  source_.Script([](grpc::ServerContext* context, const std::vector<uint32_t>&, Writer*) {
    while (!context->IsCancelled()) std::this_thread::sleep_for(std::chrono::milliseconds(2));
    return grpc::Status::CANCELLED;
  });
  options_.silence = absl::Milliseconds(50);
  const absl::Status silent = ModelFetch::Open(options_).status();
  EXPECT_EQ(silent.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(silent.message()), HasSubstr("nothing of the model came for 50ms"));

  options_.silence = absl::Seconds(30);
  int turns = 0;
  options_.on_turn = [&] {
    if (++turns == 3) interrupter_.Interrupt();
  };
  EXPECT_TRUE(absl::IsCancelled(ModelFetch::Open(options_).status()));
}

TEST_F(ModelFetchTest, RefusesManifestsThatWereNotNamed) {
  options_.manifest_sha256.back() ^= 1;
  EXPECT_EQ(ModelFetch::Open(options_).status().code(), absl::StatusCode::kDataLoss);
  options_.manifest_sha256.back() ^= 1;
  source_.SpoilManifest();
  EXPECT_EQ(ModelFetch::Open(options_).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(std::filesystem::exists(options_.folder)) << "nothing is made before the manifest is known";
}

TEST_F(ModelFetchTest, AsksForDamagedChunksOnly) {
  const ByteRange range = source_.TensorRange("token_embd.weight");
  EXPECT_TRUE(Open()->Need("stage 0", {&range, 1}).ok());
  const std::string path = options_.folder + "/" + options_.manifest_sha256 + ".gguf";
  for (const uint64_t offset : {range.offset, range.offset + 3 * kMaxChunkBytes}) {
    std::fstream file(path, std::ios::in | std::ios::out);
    file.seekp(static_cast<std::streamoff>(offset));
    file.put(static_cast<char>(~source_.bytes_[offset]));
  }
  const std::unique_ptr<ModelFetch> fetch = Open();
  testing::internal::CaptureStderr();
  EXPECT_TRUE(fetch->Need("stage 0", {&range, 1}).ok());
  EXPECT_THAT(testing::internal::GetCapturedStderr(),
              HasSubstr("is damaged in 2 of 5 chunks, first at byte"));
  const std::vector<uint32_t> all = ChunksOf(source_.manifest_, {&range, 1});
  EXPECT_THAT(source_.TakeAsked(), ElementsAre(ElementsAre(all[0], all[3])));
  ExpectHas(*fetch, "token_embd.weight");
}

// Somebody tidies up while workers run; another worker may have filled the folder again.
TEST_F(ModelFetchTest, BeginsAnewWhereFilesWereRemoved) {
  const ByteRange first = source_.TensorRange("blk.0.ffn_up.weight");
  const ByteRange second = source_.TensorRange("blk.1.ffn_up.weight");
  for (const bool another : {false, true}) {
    const std::unique_ptr<ModelFetch> fetch = Open();
    ASSERT_TRUE(fetch->Need("stage 0", {&first, 1}).ok());
    ASSERT_TRUE(fetch->OpenFile().ok());
    std::filesystem::remove_all(options_.folder);
    if (another) {
      EXPECT_TRUE(Open()->Need("stage 1", {&second, 1}).ok());
    }
    const absl::StatusOr<bool> fetched = fetch->Need("stage 0", {&second, 1});
    ASSERT_TRUE(fetched.ok()) << fetched.status();
    EXPECT_TRUE(*fetched) << "an older mapping is not of the new file";
    ExpectHas(*fetch, "blk.1.ffn_up.weight");
    EXPECT_FALSE(*fetch->Need("stage 0", {&second, 1}));
  }
}

}  // namespace
}  // namespace millrace
