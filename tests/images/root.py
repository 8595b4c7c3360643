"""Folders as root file systems: made by debootstrap, entered with namespaces of their own."""
import os
import pathlib
import shlex
import shutil
import subprocess

# What an image engine's own Debian has: no services are started by installing them, and no documentation.
POLICY = "#!/bin/sh\nexit 101\n"
SLIM = "".join(f"path-exclude /usr/share/{kind}/*\n" for kind in ("doc", "man", "info", "locale")) + "path-include /usr/share/doc/*/copyright\n"
# Handed to build steps where this machine reaches its package servers by a proxy or by certificates of its own.
NETWORK = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_DEFAULT_TIMEOUT")
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
INSIDE = "/run/certificates.crt"


def debian(folder, mirror):
    """A minimal Debian 12 in `folder`, made once."""
    if (folder / ".complete").exists():
        return folder
    if not shutil.which("debootstrap"):
        raise SystemExit("execute.py: error: debootstrap is missing: apt-get install debootstrap")
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run(["debootstrap", "--variant=minbase", "bookworm", str(folder), mirror], check=True, stdout=subprocess.DEVNULL)
    (folder / "usr/sbin/policy-rc.d").write_text(POLICY)
    (folder / "usr/sbin/policy-rc.d").chmod(0o755)
    (folder / "etc/dpkg/dpkg.cfg.d/slim").write_text(SLIM)
    shutil.rmtree(folder / "var/lib/apt/lists", ignore_errors=True)
    (folder / ".complete").touch()
    return folder


def clone(source, folder):
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run(["cp", "-a", "--reflink=auto", f"{source}/.", str(folder)], check=True)


def size(folder):
    """Bytes on the disk."""
    return int(subprocess.run(["du", "-sxB1", str(folder)], check=True, stdout=subprocess.PIPE, text=True).stdout.split()[0])


def write_file(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def run_step(root, environment, folder, argv):
    """As a build step: root, the network of this machine, a proc and dev of its own."""
    environment = dict(environment)
    environment.update({name: os.environ[name] for name in NETWORK if name in os.environ})
    binds = [("/etc/resolv.conf", "etc/resolv.conf"), ("/etc/hosts", "etc/hosts")]
    if pathlib.Path(CERTIFICATES).exists():
        binds.append((CERTIFICATES, INSIDE[1:]))
        environment.update({"PIP_CERT": INSIDE, "SSL_CERT_FILE": INSIDE})
    lines = ["set -e", f"cd {shlex.quote(str(root))}", "mount -t proc proc proc", "mount --rbind /dev dev", "mount -t tmpfs tmpfs tmp"]
    made = []
    for source, target in binds:
        if not (root / target).exists():
            write_file(root / target)
            made.append(root / target)
        lines.append(f"mount --bind {source} {target}")
    inner = ["env", "-i", *[f"{name}={value}" for name, value in environment.items()], "/bin/sh", "-c", 'cd "$0" && exec "$@"', folder, *argv]
    lines.append("exec chroot . " + shlex.join(inner))
    done = subprocess.run(["unshare", "--mount", "--pid", "--fork", "--uts", "--ipc", "/bin/sh", "-c", "\n".join(lines)], stdin=subprocess.DEVNULL)
    for path in made:
        path.unlink()
    return done.returncode


def container_argv(root, image, argv, mounts):
    """What starts `argv` as a container engine would: the image's user without any right, a read-only root, /tmp in memory.

    `mounts`: (source, target, writable). Its first process is process 1 of a namespace of its own.
    """
    lines = ["set -e", "mount --make-rprivate /", f"mount --bind {shlex.quote(str(root))} {shlex.quote(str(root))}", f"cd {shlex.quote(str(root))}",
             "mount -o remount,bind,ro .", "mount -t proc proc proc", "mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs tmp",
             "mount -t tmpfs -o mode=755 tmpfs dev", "mkdir dev/shm", "mount -t tmpfs -o mode=1777 tmpfs dev/shm"]
    for name in ("null", "zero", "random", "urandom"):
        lines.append(f"touch dev/{name}; mount --bind /dev/{name} dev/{name}")
    lines.append("mount -o remount,ro dev")
    for source, target, writable in mounts:
        lines.append(f"mount --bind {shlex.quote(str(source))} {target[1:]}")
        lines.append(f"mount -o remount,bind,{'rw' if writable else 'ro'},nosuid,nodev {target[1:]}")
    environment = [f"{name}={value}" for name, value in image.environment.items()]
    user, group = image.user.split(":")
    inner = ["/usr/bin/setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all",
             "env", "-i", *environment, "/bin/sh", "-c", 'cd "$0" && exec "$@"', image.folder, *argv]
    lines.append("exec chroot . " + shlex.join(inner))
    return ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--uts", "--ipc", "/bin/sh", "-c", "\n".join(lines)]
