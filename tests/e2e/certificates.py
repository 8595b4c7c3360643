"""A test CA: makes certificates with the openssl program when tests run."""
import os
import pathlib
import subprocess

CONFIG = """[ca]
default_ca = it
[it]
dir = {folder}
database = {folder}/index.txt
new_certs_dir = {folder}
serial = {folder}/serial
certificate = {folder}/ca.pem
private_key = {folder}/ca.key
default_md = sha256
policy = any
unique_subject = no
email_in_dn = no
[any]
commonName = supplied
"""


def _openssl(*args):
    done = subprocess.run(["openssl", *[str(arg) for arg in args]], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=60)
    assert done.returncode == 0, f"openssl {args}:\n{done.stdout.decode(errors='replace')}"


class Certificate:
    def __init__(self, cert, key, ca):
        self.cert, self.key, self.ca = cert, key, ca

    def flags(self, *more, ca=None):
        """What our programs are given."""
        return ["--tls-cert", self.cert, "--tls-key", self.key, "--tls-ca", ca or self.ca, *more]


class TestCa:
    __test__ = False

    def __init__(self, folder, name="test CA"):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True)
        self.cert, self.key = self.folder / "ca.pem", self.folder / "ca.key"
        self.config = self.folder / "ca.cnf"
        self.config.write_text(CONFIG.format(folder=self.folder))
        (self.folder / "index.txt").write_text("")
        (self.folder / "serial").write_text("01\n")
        _openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", self.key,
                 "-out", self.cert, "-days", "2", "-subj", f"/CN={name}", "-addext", "basicConstraints=critical,CA:TRUE")

    def issue(self, name, hosts="IP:127.0.0.1,DNS:localhost", begin=None, end=None):
        """`begin`, `end`: YYYYMMDDHHMMSSZ; otherwise valid from now, for a day."""
        cert, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        request, extensions = self.folder / f"{name}.csr", self.folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName={hosts}\n")
        _openssl("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key,
                 "-out", request, "-subj", f"/CN={name}")
        dates = ["-startdate", begin, "-enddate", end] if begin else ["-days", "1"]
        _openssl("ca", "-batch", "-notext", "-config", self.config, "-in", request, "-out", cert, "-extfile", extensions, *dates)
        return Certificate(cert, key, self.cert)

    def expired(self, name="expired"):
        return self.issue(name, begin="20200101000000Z", end="20200102000000Z")


def replace_file(source, target):
    """At once: who reads `target` sees the old content or the new."""
    part = target.with_suffix(".part")
    part.write_bytes(pathlib.Path(source).read_bytes())
    os.replace(part, target)


def replace(old, new):
    """Puts certificate `new` in the place of `old`, one file after the other."""
    replace_file(new.cert, old.cert)
    replace_file(new.key, old.key)
