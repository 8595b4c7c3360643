"""A DNS server for the cluster's names: A records of Services and pods, nothing else.

Answers are made by `answer`, which is pure. Names outside the zone do not exist: pods reach nothing outside the cluster.
"""
import asyncio
import random
import struct

A, ANY, IN = 1, 255, 1
NO_ERROR, NAME_ERROR, FORMAT_ERROR = 0, 3, 1


def _question(packet):
    """(lower-case name, type, end of the question)."""
    labels, at = [], 12
    while True:
        size = packet[at]
        if size & 0xC0:
            raise ValueError("compressed question")
        at += 1
        if size == 0:
            break
        if at + size > len(packet):
            raise ValueError("cut name")
        labels.append(packet[at:at + size].decode("ascii").lower())
        at += size
    kind, _ = struct.unpack_from("!HH", packet, at)
    return ".".join(labels), kind, at + 4


def answer(packet, records):
    """The reply to a query. `records`: {name: [IPv4 address]}; a known name without addresses has no data, others do not exist."""
    if len(packet) < 12:
        return b""
    identity, flags, questions = struct.unpack_from("!HHH", packet)
    if flags & 0x8000:
        return b""
    head = 0x8400 | (flags & 0x0100)
    try:
        if questions != 1:
            raise ValueError("one question expected")
        name, kind, end = _question(packet)
    except (ValueError, IndexError, struct.error):
        return struct.pack("!HHHHHH", identity, head | FORMAT_ERROR, 0, 0, 0, 0)
    addresses = list(records.get(name, ())) if kind in (A, ANY) else []
    random.shuffle(addresses)
    code = NO_ERROR if name in records else NAME_ERROR
    body = b"".join(struct.pack("!HHHIH", 0xC00C, A, IN, 1, 4) + bytes(int(part) for part in address.split("."))
                    for address in addresses)
    return struct.pack("!HHHHHH", identity, head | code, 1, len(addresses), 0, 0) + packet[12:end] + body


class Server(asyncio.DatagramProtocol):
    """Serves `records()` on a datagram socket of the node."""

    def __init__(self, records):
        self._records = records
        self._transport = None

    def connection_made(self, transport):
        self._transport = transport

    def datagram_received(self, data, addr):
        reply = answer(data, self._records())
        if reply:
            self._transport.sendto(reply, addr)
