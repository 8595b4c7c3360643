"""Probes as the kubelet makes them: when they run and what follows from their results (`ProbeState`, pure), and the ways to probe."""
import asyncio
import dataclasses
import struct

from .expand import BadObject


@dataclasses.dataclass
class ProbeSpec:
    """A probe of a container, with Kubernetes' defaults. Times in seconds."""
    kind: str
    action: dict
    initial_delay: float = 0
    period: float = 10
    timeout: float = 1
    success_threshold: int = 1
    failure_threshold: int = 3
    grace: object = None

    @staticmethod
    def of(kind, probe):
        if probe is None:
            return None
        actions = [key for key in ("exec", "grpc", "httpGet", "tcpSocket") if key in probe]
        if len(actions) != 1:
            raise BadObject(f"{kind} probe has {len(actions)} actions: {actions}")
        spec = ProbeSpec(kind, {actions[0]: probe[actions[0]]}, probe.get("initialDelaySeconds", 0), probe.get("periodSeconds") or 10,
                         probe.get("timeoutSeconds") or 1, probe.get("successThreshold") or 1, probe.get("failureThreshold") or 3,
                         probe.get("terminationGracePeriodSeconds"))
        if kind != "readiness" and spec.success_threshold != 1:
            raise BadObject(f"{kind} probe: successThreshold must be 1")
        return spec


class ProbeState:
    """What a row of results means. A value changes only after as many equal results as its threshold says."""

    def __init__(self, spec):
        self.spec = spec
        # As the kubelet begins: alive until shown otherwise, neither started nor ready.
        self.value = spec.kind == "liveness"
        self._last = None
        self._run = 0

    def result(self, success):
        """Takes one result; True if it made the probe say something (which may be what it said before)."""
        self._run = self._run + 1 if success == self._last else 1
        self._last = success
        if self._run < (self.spec.success_threshold if success else self.spec.failure_threshold):
            return False
        self.value = success
        return True


async def _connect(network, address, port):
    sock = network.socket()
    try:
        await asyncio.get_running_loop().sock_connect(sock, (address, port))
        return await asyncio.open_connection(sock=sock, limit=1 << 20)
    except BaseException:
        sock.close()
        raise


def _frame(kind, flags, stream, payload):
    return struct.pack("!I", len(payload))[1:] + bytes((kind, flags)) + struct.pack("!I", stream) + payload


def _header(name, value):
    """A header that is neither indexed nor compressed."""
    return b"\x00" + bytes((len(name),)) + name + bytes((len(value),)) + value


DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
SERVING = b"\x08\x01"


def health_request(authority, service):
    """The bytes of a whole HTTP/2 connection that calls grpc.health.v1.Health/Check once."""
    fields = ((b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/grpc.health.v1.Health/Check"),
              (b":authority", authority.encode()), (b"content-type", b"application/grpc"), (b"te", b"trailers"),
              (b"user-agent", b"kube-probe/1.32"))
    name = service.encode()
    if len(name) > 100:
        raise BadObject("the name of a health service is at most 100 bytes")
    message = b"\x0a" + bytes((len(name),)) + name if name else b""
    return (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(SETTINGS, 0, 0, b"")
            + _frame(HEADERS, 4, 1, b"".join(_header(*field) for field in fields))
            + _frame(DATA, 1, 1, b"\x00" + struct.pack("!I", len(message)) + message))


async def probe_grpc(network, address, port, service):
    """One Check over a plaintext connection of its own: (serving, what was said)."""
    reader, writer = await _connect(network, address, port)
    try:
        writer.write(health_request(f"{address}:{port}", service))
        data = b""
        while True:
            head = await reader.readexactly(9)
            payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
            kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big") & 0x7FFFFFFF
            if kind == SETTINGS and not flags & 1:
                writer.write(_frame(SETTINGS, 1, 0, b""))
            elif kind == PING and not flags & 1:
                writer.write(_frame(PING, 1, 0, payload))
            elif stream == 1 and kind == DATA:
                data += payload
            if kind == GOAWAY or (stream == 1 and (kind == RESET or flags & 1)):
                break
        if not data:
            return False, f"no answer for service '{service}' (an error status)"
        return data[5:] == SERVING, f"service '{service}' answers {data[5:].hex() or 'UNKNOWN'}"
    finally:
        writer.close()


async def probe_http(network, address, action, port):
    """GET; success is a status from 200 to 399."""
    if action.get("scheme", "HTTP") != "HTTP":
        raise BadObject("httpGet probe: only the scheme HTTP is played")
    reader, writer = await _connect(network, action.get("host") or address, port)
    try:
        headers = {"Host": f"{address}:{port}", "User-Agent": "kube-probe/1.32", "Accept": "*/*", "Connection": "close"}
        headers.update({entry["name"]: entry["value"] for entry in action.get("httpHeaders", ())})
        lines = [f"GET {action.get('path', '/')} HTTP/1.1"] + [f"{name}: {value}" for name, value in headers.items()]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        status = (await reader.readline()).decode(errors="replace").split()
        code = int(status[1]) if len(status) > 1 and status[1].isdigit() else 0
        return 200 <= code < 400, f"HTTP status {code}"
    finally:
        writer.close()


async def probe_tcp(network, address, port):
    _, writer = await _connect(network, address, port)
    writer.close()
    return True, "connected"


async def probe_once(spec, container):
    """Makes one probe of a container: (success, what was seen). Never raises for what the container does.

    `container` has `network`, `address`, `port(name or number)` and `execute(command)` (exit code and output)."""
    (kind, action), = spec.action.items()

    async def run():
        if kind == "exec":
            code, output = await container.execute(action["command"])
            return code == 0, f"exit code {code}: {output.strip()[-200:]}"
        if kind == "grpc":
            return await probe_grpc(container.network, container.address, container.port(action["port"]), action.get("service") or "")
        port = container.port(action["port"])
        if kind == "httpGet":
            return await probe_http(container.network, container.address, action, port)
        return await probe_tcp(container.network, action.get("host") or container.address, port)
    try:
        return await asyncio.wait_for(run(), spec.timeout)
    except asyncio.TimeoutError:
        return False, f"no answer within {spec.timeout} s"
    except (OSError, asyncio.IncompleteReadError) as error:
        return False, str(error) or type(error).__name__
