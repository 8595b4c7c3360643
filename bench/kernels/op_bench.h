// Each op once, timed, as lines of JSON.
#pragma once

#include <string>

#include "kernels/backend.h"

namespace millrace::kernels {

struct OpBenchOptions {
  bool quick = false;
  double least_seconds = 0.05;  // of each measurement
};

// Prints {"op": "matmul", "model", "type", "name", "n", "k", "rows", "seconds", "bytes", "per_pass"} for
// every matrix of the models, with weights that no cache holds. `bytes`: of the weights; `per_pass`: how
// often a forward pass runs it.
void BenchMatMuls(const Backend& backend, const OpBenchOptions& options);

// Prints {"op": "attention", "context", "rows", "seconds", "flops"}.
void BenchAttention(const Backend& backend, const OpBenchOptions& options);

// Prints {"op", "seconds", "bytes"} of what only goes through memory; "bytes" counts what is read and
// written.
void BenchSmallOps(const Backend& backend, const OpBenchOptions& options);

}  // namespace millrace::kernels
