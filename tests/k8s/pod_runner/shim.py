"""Stands between the runner and one container: makes its namespaces and root, becomes its process, and tells how it ended.

  python3 -I -S shim.py SPEC_FD CONTROL_FD STATUS_FD NET_FD

SPEC_FD      the container as JSON (see `container.py`, which writes it)
CONTROL_FD   read end of a pipe that only the runner holds open: when it closes, the container is killed, so that nothing
             outlives a runner that was itself killed
STATUS_FD    one JSON object a line: {"pid": N}, then {"exit": code} or {"error": text}; code is 128 + signal as in Kubernetes
NET_FD       the pod's network namespace

Only the standard library is imported, without site packages: this runs once for every container start.
"""
import ctypes
import json
import os
import select
import signal
import stat
import sys

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWPID, CLONE_NEWNET = 0x20000, 0x4000000, 0x8000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 24, 38
SYS_PIVOT_ROOT = 155  # x86-64
LAST_CAPABILITY = 40
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")

libc = ctypes.CDLL(None, use_errno=True)


def checked(result, what):
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source, target, kind=None, flags=0, data=None):
    def text(value):
        return None if value is None else os.fsencode(value)
    checked(libc.mount(text(source), text(target), text(kind), ctypes.c_ulong(flags), text(data)),
            f"mount {source} at {target}")


def bind(source, target, read_only=False):
    mount(source, target, None, MS_BIND | MS_REC)
    if read_only:
        kept = os.statvfs(target).f_flag & (MS_NOSUID | MS_NODEV | MS_NOEXEC)
        mount(None, target, None, MS_BIND | MS_REMOUNT | MS_RDONLY | kept)


def place_for(source, target):
    """Makes a mount point of the kind of `source`; its parents must be writable."""
    if stat.S_ISDIR(os.stat(source).st_mode):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if not os.path.lexists(target):
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))


def make_etc(root, files):
    os.mkdir(f"{root}/etc")
    for name, text in files.items():
        with open(f"{root}/etc/{name}", "w") as out:
            out.write(text)
    for name in ("ssl", "ld.so.cache", "alternatives"):
        if os.path.exists(f"/etc/{name}"):
            place_for(f"/etc/{name}", f"{root}/etc/{name}")
            bind(f"/etc/{name}", f"{root}/etc/{name}", read_only=True)


def make_system(root):
    """/usr of this machine, read-only, and what a container runtime mounts in every container."""
    os.mkdir(f"{root}/usr")
    bind("/usr", f"{root}/usr", read_only=True)
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        if os.path.islink(f"/{name}"):
            os.symlink(os.readlink(f"/{name}"), f"{root}/{name}")
        elif os.path.isdir(f"/{name}"):
            os.mkdir(f"{root}/{name}")
            bind(f"/{name}", f"{root}/{name}", read_only=True)
    for name in ("proc", "sys", "dev", "tmp", "run", "root", "home"):
        os.mkdir(f"{root}/{name}")
    os.makedirs(f"{root}/var/cache")
    os.makedirs(f"{root}/var/tmp")
    mount("proc", f"{root}/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("sysfs", f"{root}/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY)
    mount("tmpfs", f"{root}/dev", "tmpfs", MS_NOSUID, "mode=755,size=64k")
    for name in filter(lambda one: os.path.exists(f"/dev/{one}"), DEVICES):
        place_for(f"/dev/{name}", f"{root}/dev/{name}")
        bind(f"/dev/{name}", f"{root}/dev/{name}")
    os.mkdir(f"{root}/dev/shm")
    mount("shm", f"{root}/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=1777,size=64m")
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("stdout", "/proc/self/fd/1"),
                         ("stderr", "/proc/self/fd/2")):
        os.symlink(target, f"{root}/dev/{name}")


def make_root(spec):
    root = spec["root"]
    checked(libc.mount(None, b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None), "make mounts private")
    mount("image", root, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=16m")
    make_system(root)
    make_etc(root, spec["etc"])
    for folder in spec["folders"]:
        path = root + folder["path"]
        os.makedirs(path, exist_ok=True)
        os.chown(path, folder["uid"], folder["gid"])
        os.chmod(path, folder["mode"])
    # The image's programs: a folder of their own, so that nothing else of this machine is found there.
    mount("programs", f"{root}/usr/local/bin", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=64k")
    for name, source in spec["programs"].items():
        place_for(source, f"{root}/usr/local/bin/{name}")
        bind(source, f"{root}/usr/local/bin/{name}", read_only=True)
    for volume in sorted(spec["mounts"], key=lambda one: one["target"].count("/")):
        target = root + volume["target"]
        place_for(volume["source"], target)
        bind(volume["source"], target, volume["read_only"])
    mount(None, f"{root}/usr/local/bin", None, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV)
    if spec["read_only_root"]:
        mount(None, root, None, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV)
    os.chdir(root)
    checked(libc.syscall(SYS_PIVOT_ROOT, b".", b"."), "pivot_root")
    checked(libc.umount2(b".", MNT_DETACH), "leave the old root")
    os.chdir("/")


def drop_privileges(spec):
    if spec["drop_capabilities"]:
        for capability in range(LAST_CAPABILITY + 1):
            libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    os.setgroups(spec["groups"])
    os.setresgid(spec["gid"], spec["gid"], spec["gid"])
    os.setresuid(spec["uid"], spec["uid"], spec["uid"])
    if spec["no_new_privileges"]:
        checked(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    # A change of user clears the request for this signal.
    checked(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "parent-death signal")


def become_container(spec):
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    name = os.fsencode(spec["hostname"])
    checked(libc.sethostname(name, len(name)), "sethostname")
    make_root(spec)
    drop_privileges(spec)
    os.chdir(spec["cwd"])
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    os.umask(0o022)
    try:
        os.execvpe(spec["command"][0], spec["command"], spec["env"])
    except OSError as error:
        raise OSError(error.errno, f"exec {spec['command'][0]}: {os.strerror(error.errno)}") from None


def watch(child, control, say):
    """Until the container ends; kills it when the runner is gone."""
    pidfd = os.pidfd_open(child)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(control, select.POLLIN | select.POLLHUP)
    while True:
        ready = dict(poll.poll())
        if pidfd in ready:
            status = os.waitpid(child, 0)[1]
            code = os.waitstatus_to_exitcode(status)
            say({"exit": code if code >= 0 else 128 - code})
            return
        if control in ready:
            poll.unregister(control)
            os.kill(child, signal.SIGKILL)


def main():
    spec_fd, control, status, net = (int(arg) for arg in sys.argv[1:5])
    # The group of the runner gets its Ctrl-C; containers end by the kubelet's order.
    os.setsid()

    def say(message):
        try:
            os.write(status, json.dumps(message).encode() + b"\n")
        except BrokenPipeError:
            pass
    with os.fdopen(spec_fd) as file:
        spec = json.load(file)
    try:
        checked(libc.setns(net, CLONE_NEWNET), "enter the network namespace")
        checked(libc.unshare(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID), "make namespaces")
    except OSError as error:
        say({"error": str(error)})
        return
    failed, fail = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        try:
            for fd in (control, status, net, failed):
                os.close(fd)
            become_container(spec)
        except BaseException as error:  # noqa: B902: whatever it is, the runner is to hear it
            os.write(fail, str(error).encode())
        finally:
            os._exit(128)
    os.close(fail)
    error = os.read(failed, 4096)
    if error:
        os.waitpid(child, 0)
        say({"error": error.decode(errors="replace")})
        return
    say({"pid": child})
    watch(child, control, say)


if __name__ == "__main__":
    main()
