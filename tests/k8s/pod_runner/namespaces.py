"""The network of the pretended cluster: a namespace that is the node with a bridge, and one for each pod.

No namespace has a name: the runner's file descriptors and the processes inside keep them alive, so that nothing is left when
the runner ends, however it ends. Addresses are therefore the same in every run and never meet those of this machine.
"""
import contextlib
import ctypes
import ipaddress
import os
import shutil
import socket
import subprocess
import threading

CLONE_NEWNET = 0x40000000
POD_NET = ipaddress.ip_network("10.244.0.0/16")
SERVICE_NET = ipaddress.ip_network("10.96.0.0/16")
NODE_IP = "10.244.0.1"
DNS_IP = "10.96.0.10"

_libc = ctypes.CDLL(None, use_errno=True)


class Impossible(RuntimeError):
    """This machine cannot run pods. The text says what is missing."""


def _checked(result, what):
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def check_machine():
    """Raises Impossible with one line where namespaces, or the programs that set them up, are missing."""
    if os.geteuid() != 0:
        raise Impossible("the pod runner needs root for its namespaces: run the tests as root")
    for program, package in (("ip", "iproute2"), ("iptables-restore", "iptables"), ("nsenter", "util-linux")):
        if not shutil.which(program):
            raise Impossible(f"the pod runner needs '{program}': install the Debian package {package} (deploy/install_packages.sh --tests)")
    done = subprocess.run(["unshare", "--net", "--mount", "--pid", "--ipc", "--uts", "--fork", "mount", "-t", "tmpfs", "tmpfs", "/mnt"],
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    if done.returncode:
        raise Impossible("the pod runner cannot make namespaces here (it needs CAP_SYS_ADMIN and CAP_NET_ADMIN): "
                         + done.stderr.decode(errors="replace").strip())


def new_network_namespace():
    """A file descriptor of a new network namespace, which ends with its last descriptor and process."""
    result = []

    def make():
        try:
            _checked(_libc.unshare(CLONE_NEWNET), "make a network namespace")
            result.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            result.append(error)
    # Only the thread changes its namespace, and it ends here.
    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if isinstance(result[0], OSError):
        raise Impossible(str(result[0]))
    return result[0]


@contextlib.contextmanager
def inside(namespace):
    """The calling thread works in `namespace`; sockets made meanwhile stay there. Must not await inside."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _checked(_libc.setns(namespace, CLONE_NEWNET), "enter a network namespace")
        try:
            yield
        finally:
            _checked(_libc.setns(before, CLONE_NEWNET), "leave a network namespace")
    finally:
        os.close(before)


def run_in(namespace, *command, text=None):
    """Runs a program in a network namespace; raises with what it said where it fails."""
    with inside(namespace):
        done = subprocess.run(command, input=text, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()}\n{text or ''}")
    return done.stdout


class Network:
    """The node's namespace, and the addresses given to pods. Owned by the runner's thread."""

    def __init__(self):
        self.node = new_network_namespace()
        self._addresses = (str(ip) for ip in POD_NET.hosts() if str(ip) != NODE_IP)
        self._clusters = (str(ip) for ip in SERVICE_NET.hosts() if str(ip) != DNS_IP)
        self._links = 0
        run_in(self.node, "ip", "-batch", "-", text="\n".join((
            "link set lo up", "link add cni0 type bridge", f"addr add {NODE_IP}/{POD_NET.prefixlen} dev cni0",
            f"addr add {DNS_IP}/32 dev lo", "link set cni0 up")))

    def add_pod(self):
        """(namespace, address) of a new pod."""
        namespace, address = new_network_namespace(), next(self._addresses)
        self._links += 1
        link = f"veth{self._links}"
        peer = f"/proc/{os.getpid()}/fd/{namespace}"
        try:
            run_in(self.node, "ip", "-batch", "-", text="\n".join((
                f"link add {link} type veth peer name eth0 netns {peer}", f"link set {link} master cni0 up")))
            run_in(namespace, "ip", "-batch", "-", text="\n".join((
                "link set lo up", f"addr add {address}/{POD_NET.prefixlen} dev eth0", "link set eth0 up",
                f"route add default via {NODE_IP}")))
        except BaseException:
            os.close(namespace)
            raise
        return namespace, address

    @staticmethod
    def remove_pod(namespace):
        """Gives a pod's namespace back: it ends with its last process, and its link with it."""
        os.close(namespace)

    def next_cluster_ip(self):
        return next(self._clusters)

    def socket(self, kind=socket.SOCK_STREAM):
        """A socket of the node: probes and DNS come from there."""
        with inside(self.node):
            return socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)

    def close(self):
        os.close(self.node)
