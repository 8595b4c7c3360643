// How the ranks of one mpirun find each other: MPI carries rank order, addresses and a secret, then gRPC
// takes over.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace millrace {

// What rank 0 tells the others.
struct Invitation {
  std::string error;  // why there is nothing to join; empty: there is
  std::string secret;
  std::vector<std::string> addresses;  // of the coordinator, host:port, best first
};

std::string EncodeInvitation(const Invitation& invitation);
// INVALID_ARGUMENT: not what EncodeInvitation makes.
absl::StatusOr<Invitation> DecodeInvitation(const std::string& text);

// The addresses under which others may reach what listens on `listen`: itself, or every address of this host
// if it is 0.0.0.0, loopback last.
std::vector<std::string> ReachableAddresses(const std::string& listen);

// This host's address in a network: `interface` is the name of an interface ("eth0") or an IPv4 network in
// CIDR notation ("10.0.0.0/24"). INVALID_ARGUMENT: not a network. NOT_FOUND: this host has no address there.
absl::StatusOr<std::string> AddressInside(const std::string& interface);

// The rank that whoever started this process gave it, by the variables of Open MPI, PMIx, PMI and Slurm, the
// first that is a number; `get_variable` is std::getenv, but for tests. No value: started by none of them.
std::optional<uint32_t> RankInEnvironment(const std::function<const char*(const char*)>& get_variable);

// The first of the addresses that accepts a connection. UNAVAILABLE: none did within `timeout`.
absl::StatusOr<std::string> FirstThatAnswers(const std::vector<std::string>& addresses,
                                             absl::Duration timeout);

}  // namespace millrace
