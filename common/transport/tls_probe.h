// Why no connection comes about: asked of the peer itself, as gRPC's errors do not say it.
#pragma once

#include <string>

#include "common/transport/credentials.h"

namespace millrace {

// One line that says what is wrong between this process's TLS settings and the peer's ("... speaks TLS: give
// --tls-ca", "its certificate has expired"), or empty: nothing listens there, or TLS is not to blame.
// Connects once and takes up to three seconds. `credentials` may be null. Thread: any.
std::string ExplainFailedConnection(const std::string& address, const SharedCredentials& credentials);

}  // namespace millrace
