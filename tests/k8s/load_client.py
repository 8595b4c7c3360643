"""Steady load from inside the cluster, as a client that retries as the API says. Runs in a pod of its own.

  python load_client.py SERVER STREAMS CASES

CASES: JSON, [{"ids": [...], "tokens": [...]}]: prompts with the tokens that must come. Each stream asks for one after the other until
SIGTERM, then finishes what it began. Prints one JSON object for each attempt: when it began and ended (CLOCK_MONOTONIC, which all
processes of a machine share), status code and reason, tokens received, and whether they were the right ones.
An attempt that was refused with UNAVAILABLE before anything came is made again after the pause that the server asked for.
"""
import faulthandler
import itertools
import json
import os
import signal
import sys
import threading
import time

import grpc
import harness
from millrace.v1 import inference_pb2_grpc

stopping = threading.Event()
# Seconds after SIGTERM at which what still runs is shown, so that the log of a client that does not end tells why.
TELL_AFTER = 30
printing = threading.Lock()
# A client that was refused by the network, not by the server, has been told no pause.
PAUSE = 0.2
# gRPC's own pause between attempts to connect grows to two minutes unless it is told otherwise. What is tried again is decided here.
# An address that is gone takes 20 s to be given up by default.
CHANNEL = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0), ("grpc.min_reconnect_backoff_ms", 5000),
           ("grpc.initial_reconnect_backoff_ms", 200), ("grpc.max_reconnect_backoff_ms", 1000)]


def say(**fields):
    with printing:
        print(json.dumps(fields), flush=True)


def attempt(stub, case, number):
    """One Generate; returns the pause before the next try, or None where the request is over."""
    tokens, begun, code, reason, pause, started = [], time.monotonic(), "OK", "", None, False
    message = harness.request(case["ids"], len(case["tokens"]), harness.GREEDY)
    try:
        for event in stub.Generate(message, timeout=60):
            started = True
            tokens.extend(event.tokens.token_ids)
    except grpc.RpcError as error:
        code, reason = error.code().name, error.details()
        pause = PAUSE
        try:
            detail = harness.error_detail(error)
            reason = f"{detail.reason}: {reason}"
            if detail.HasField("retry_after"):
                pause = detail.retry_after.ToMilliseconds() / 1000
        except AssertionError:
            pass
    retryable = code == "UNAVAILABLE" and not started
    say(begin=begun, end=time.monotonic(), attempt=number, code=code, reason=reason, tokens=len(tokens), retryable=retryable,
        right=code == "OK" and tokens == case["tokens"])
    if pause is not None and not retryable:
        stopping.wait(PAUSE)
    return pause if retryable else None


def stream(server, cases, offset):
    stub = inference_pb2_grpc.InferenceStub(grpc.insecure_channel(server, options=CHANNEL))
    for index in itertools.count(offset):
        if stopping.is_set():
            return
        for number in itertools.count(1):
            pause = attempt(stub, cases[index % len(cases)], number)
            if pause is None or stopping.is_set():
                break
            stopping.wait(pause)


def main():
    # Waited for, not handled: a handler runs in this thread only, which nothing wakes if the kernel gives the signal to another.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    server, streams, cases = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    threads = [threading.Thread(target=stream, args=(server, cases, index)) for index in range(streams)]
    for thread in threads:
        thread.start()
    signal.sigwait({signal.SIGTERM})
    faulthandler.dump_traceback_later(TELL_AFTER)
    stopping.set()
    for thread in threads:
        thread.join()
    say(done=True)
    # Everything is said; threads of gRPC's own need not agree to the end.
    os._exit(0)


if __name__ == "__main__":
    main()
