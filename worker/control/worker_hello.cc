#include "worker/control/worker_hello.h"

#include <unistd.h>

#include "common/options.h"
#include "common/process.h"
#include "common/transport/channels.h"
#include "common/transport/local_socket.h"
#include "common/transport/numeric_messages.h"
#include "worker/control/backend_choice.h"
#include "worker/control/stage_host.h"

namespace millrace {

v1::Hello MakeHello(const WorkerOptions& options, const HelloFacts& facts) {
  v1::Hello hello;
  hello.set_version(kVersion);
  hello.set_secret(facts.secret);
  hello.set_ring_address(facts.ring_address);
  hello.set_model_fingerprint(facts.model_fingerprint);
  if (options.stage.has_value()) hello.set_stage(*options.stage);
  hello.set_numeric_class(BackendFamily(options.backends));
  for (const ActivationType type : SupportedActivations(options.backends)) {
    hello.add_activation_types(ToWire(type));
  }
  for (const KvType type : SupportedKvTypes(options.backends)) hello.add_kv_types(ToWire(type));
  hello.set_memory_bytes(BackendMemoryBytes(options.backends));
  const uint64_t kv_default =
      options.backends.cuda != nullptr ? BackendMemoryBytes(options.backends) : kHostKvMemoryBytes;
  hello.set_kv_memory_bytes(options.kv_memory_bytes != 0 ? options.kv_memory_bytes : kv_default);
  hello.set_threads(static_cast<uint32_t>(options.backends.threads));
  hello.set_kernels(facts.kernels);
  hello.set_machine(MachineIdentity());
  hello.set_cores(CoreListText(AllowedCores()));
  hello.set_process_id(static_cast<uint64_t>(getpid()));
  hello.set_host(HostName());
  // What stands in for the model would not be measured.
  hello.set_measures(options.profile == "auto" && !options.make_stage);
  if (!facts.unix_address.empty()) {
    hello.set_unix_address(facts.unix_address);
    hello.set_host_identity(HostIdentity());
  }
  return hello;
}

}  // namespace millrace
