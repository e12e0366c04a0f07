"""Processes meet at an address first: where one of them errs, JAX would crash or wait for minutes."""

import contextlib
import socket
import time

TIMEOUT = 30  # seconds


def meet(address: str, processes: int, process: int):
    """Waits until all processes are there, each with a number of its own.

    Args:
      address: host:port of the first process.
      processes: how many there are.
      process: which this is, from 0.

    Raises:
      ConnectionError: the host is unknown, the port of the first process is taken, nobody listens there, or
        not all processes came within `TIMEOUT` seconds, each with the same `processes` and another number.
      ValueError: `address` is none, or `process` is not in 0..processes-1.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ValueError(f"coordinator must be host:port or auto, got {address!r}")
    if not 0 <= process < processes:
        raise ValueError(f"process must be in 0..{processes - 1}, got {process}")
    try:
        socket.getaddrinfo(host, int(port))
    except OSError as error:
        raise ConnectionError(f"coordinator {address}: {host} is unknown: {error}") from error
    fault = (
        _call(host, int(port), processes) if process == 0 else _answer(host, int(port), processes, process)
    )
    if fault:
        raise ConnectionError(f"coordinator {address}: {fault}")


def _call(host, port, processes):
    """Hears what numbers the others have, and tells all of them what is wrong, or that nothing is."""
    v6, end, fault = socket.has_dualstack_ipv6(), time.monotonic() + TIMEOUT, ""
    waiting = {*range(1, processes)}
    with contextlib.ExitStack() as stack:
        try:
            family = socket.AF_INET6 if v6 else socket.AF_INET
            server = stack.enter_context(socket.create_server(("", port), family=family, dualstack_ipv6=v6))
        except OSError as error:
            return f"the first process cannot listen there, another one or another program does: {error}"
        others = []
        while waiting and not fault:
            server.settimeout(max(end - time.monotonic(), 0.01))
            try:
                others.append(stack.enter_context(server.accept()[0]))
                others[-1].settimeout(TIMEOUT)
                number, count = map(int, others[-1].recv(100).split())
            except TimeoutError:
                fault = f"process {', '.join(map(str, sorted(waiting)))} did not come within {TIMEOUT} s"
            except (OSError, ValueError):
                continue  # somebody else's
            else:
                if count != processes:
                    fault = f"process {number} was told of {count} processes, the first of {processes}"
                elif number not in waiting:
                    fault = f"there are two processes with the number {number}"
                waiting.discard(number)
        for other in others:
            with contextlib.suppress(OSError):
                other.sendall((fault or "go").encode())
    return fault


def _answer(host, port, processes, process):
    """Tells the first process the number of this one, and returns what it says is wrong."""
    end = time.monotonic() + TIMEOUT
    while True:
        try:
            with socket.create_connection((host, port), timeout=TIMEOUT) as first:
                first.sendall(f"{process} {processes}".encode())
                said = first.recv(1000).decode()
                return {"go": "", "": "the first process ended"}.get(said, said)
        except OSError as error:
            if time.monotonic() > end:
                return f"nobody answers there within {TIMEOUT} s: {error}"
            time.sleep(0.1)
