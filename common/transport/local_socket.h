// Unix sockets between processes of one host: abstract ones, which have no file and are gone with their
// process, however it ends.
#pragma once

#include <string>

namespace millrace {

// Processes that say the same can reach each other's abstract sockets: the kernel's boot id and the network
// name space (containers of one host may share the former and not the latter). Empty: unknown.
std::string HostIdentity();

// An address for a server of this process, with a name that nobody can guess beforehand. Empty: this system
// has no abstract sockets.
std::string MakeUnixAddress();

// Whether an address is one that MakeUnixAddress gives: what a peer says is connected to, and must be no
// other kind of address.
bool IsUnixAddress(const std::string& address);

}  // namespace millrace
