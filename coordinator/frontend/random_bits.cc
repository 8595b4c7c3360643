#include "coordinator/frontend/random_bits.h"

#include <sys/random.h>

#include "common/check.h"

namespace millrace {

uint64_t RandomBits() {
  uint64_t bits = 0;
  // Reads of up to 256 bytes are neither cut short nor interrupted: getrandom(2).
  MILLRACE_CHECK(getrandom(&bits, sizeof bits, 0) == sizeof bits);
  return bits;
}

}  // namespace millrace
