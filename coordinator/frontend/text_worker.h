// The text thread: prompts to tokens on the way in, tokens to text on the way out.
#pragma once

#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/ids.h"
#include "coordinator/frontend/generate_stream.h"
#include "coordinator/frontend/prompt_encoder.h"
#include "coordinator/frontend/request_registry.h"
#include "coordinator/frontend/request_stats.h"
#include "coordinator/frontend/request_validator.h"
#include "coordinator/frontend/sequence_text.h"
#include "coordinator/frontend/text_inbox.h"
#include "coordinator/pipeline/engine_port.h"
#include "model/tokenizer.h"

namespace millrace {

struct TextWorkerOptions {
  const Tokenizer* tokenizer = nullptr;
  const PromptEncoder* encoder = nullptr;
  RequestRegistry* registry = nullptr;
  const Clock* clock = nullptr;
  RequestLimits limits;
  TextInboxLimits inbox;
  absl::Duration slow_client_timeout;
};

// Owns all text state of live requests; nothing of it is seen by another thread. The engine calls TokenSink,
// gRPC threads push jobs and requests to end; everything else happens on the thread that Start makes.
//
// A request goes: job -> tokenized, submitted to the engine, Started sent -> deltas -> SequenceFinished,
// ended. A request to end it (client gone, Abort, drain) before Submit ends it at once; after Submit the
// engine is told, nothing more is sent, and it ends with SequenceFinished, when nothing of it is left
// anywhere.
class TextWorker final : public TokenSink {
 public:
  explicit TextWorker(const TextWorkerOptions& options);
  ~TextWorker() override;

  void Start(EnginePort* engine);  // once; `engine` lives until Stop returns
  // Ends what is still live with UNAVAILABLE and joins the thread. The engine's later actions are dropped.
  void Stop();

  // As TextInbox::PushJob. Thread: any.
  absl::Status PushJob(TextJob&& job) { return inbox_.PushJob(std::move(job)); }
  void PushEndRequest(SequenceId id) { inbox_.PushEndRequest(id); }
  RequestStats request_stats() const { return stats_.Snapshot(); }
  size_t queued_jobs() const { return inbox_.jobs(); }

  // TokenSink. Thread: engine.
  bool HasRoom() const override { return inbox_.HasRoom(); }
  void OnActions(std::vector<SchedulerAction> actions) override { inbox_.PushActions(std::move(actions)); }

 private:
  struct Live {
    std::shared_ptr<GenerateStream> stream;
    SequenceText text;
    absl::Time arrived;
    absl::Status ending = absl::OkStatus();  // not OK: the engine was told to cancel, with this
    absl::Time last_token = absl::InfinitePast();
  };

  void Run();
  void RunJob(TextJob job, const absl::Status& state);
  void RunGenerate(GenerateJob job);
  absl::Status Admit(GenerateJob& job);
  absl::Status Submit(GenerateJob& job, EncodedPrompt prompt);
  void Apply(const PromptLogprobsReady& ready);
  void Apply(const TokenReady& token);
  void Apply(const SequenceFinished& finished);
  void CancelSequence(SequenceId id, Live& live, absl::Status why);
  void EndRequest(SequenceId id);
  void CountToken(Live& live);
  void EndStream(GenerateStream& stream, const absl::Status& status);
  void CancelStalledStreams();
  void EndEverything();

  const TextWorkerOptions options_;
  TextInbox inbox_;
  RequestStatsRecorder stats_;
  EnginePort* engine_ = nullptr;
  std::thread thread_;

  // Text thread only.
  absl::flat_hash_map<SequenceId, std::unique_ptr<Live>> live_;
  std::vector<std::weak_ptr<GenerateStream>> streams_;  // that may have a write outstanding
  absl::Time next_stall_check_;
};

}  // namespace millrace
