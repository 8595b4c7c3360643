// Writes the seeds of request_fuzz: one of each kind of request, right and wrong.
#include <cstdio>
#include <fstream>
#include <string>

#include "millrace/v1/inference.pb.h"

namespace {

void Write(const std::string& folder, const std::string& name, const millrace::v1::GenerateRequest& request) {
  std::ofstream(folder + "/" + name, std::ios::binary) << request.SerializeAsString();
}

millrace::v1::GenerateRequest Full() {
  millrace::v1::GenerateRequest request;
  request.set_request_id("seed");
  request.set_text("hello world, and \xF0\x9F\x98\x80 <|im_end|>");
  auto* sampling = request.mutable_sampling();
  sampling->set_temperature(0.7f);
  sampling->set_top_k(40);
  sampling->set_top_p(0.9f);
  sampling->set_min_p(0.05f);
  sampling->set_repetition_penalty(1.1f);
  sampling->set_presence_penalty(0.5f);
  sampling->set_frequency_penalty(-0.5f);
  sampling->set_seed(42);
  (*sampling->mutable_logit_bias())[7] = -100;
  auto* stop = request.mutable_stop();
  stop->set_max_tokens(16);
  stop->set_min_tokens(2);
  stop->add_strings("and \xF0\x9F\x98\x80");
  stop->add_strings("world");
  stop->add_token_ids(2);
  stop->set_ignore_eos(true);
  request.set_logprobs(5);
  request.set_prompt_logprobs(0);
  request.set_parse_special(false);
  return request;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: make_request_seeds FOLDER\n");
    return 2;
  }
  const std::string folder = argv[1];
  Write(folder, "empty", {});
  Write(folder, "full", Full());
  millrace::v1::GenerateRequest request;
  for (uint32_t id : {1u, 5u, 250u, 200u, 200u, 319u}) request.mutable_token_ids()->add_ids(id);
  Write(folder, "token_ids", request);
  request.mutable_token_ids()->add_ids(320);
  Write(folder, "token_out_of_range", request);
  for (const char* role : {"system", "user", "assistant"}) {
    auto* message = request.mutable_chat()->add_messages();
    message->set_role(role);
    message->set_content("a <|im_end|> of " + std::string(role));
  }
  request.mutable_stop()->add_strings("<|im_end|> of u");
  Write(folder, "chat", request);
  request.mutable_chat()->add_messages()->set_role("root\n");
  Write(folder, "unknown_role", request);
  request.set_text(std::string(4097, 'x'));
  Write(folder, "too_large", request);
  request.set_text(std::string(600, 'z'));
  Write(folder, "too_long", request);
  request.set_text("aaaaaaaaaaab");
  request.mutable_stop()->add_strings("aab");
  request.mutable_stop()->add_strings("aaaab");
  Write(folder, "overlapping_stops", request);
  std::ofstream(folder + "/not_utf8", std::ios::binary) << "\x12\x03"
                                                           "a\xFF"
                                                           "b";
  std::ofstream(folder + "/cut", std::ios::binary) << Full().SerializeAsString().substr(0, 40);
  return 0;
}
