"""Which addresses processes listen on, as the system tells it."""

import ipaddress
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil


def listening(pid: int) -> dict[str, set[str]]:
    """The addresses that a process and all below it listen on, by the name of the process."""
    process = psutil.Process(pid)
    found: dict[str, set[str]] = {}
    for one in [process, *process.children(recursive=True)]:
        try:
            addresses = {each.laddr.ip for each in one.net_connections("inet") if each.status == psutil.CONN_LISTEN}
            found.setdefault(one.name(), set()).update(addresses)
        except psutil.Error:  # it has just ended
            continue
    return found


@contextmanager
def watched() -> Iterator[dict[str, set[str]]]:
    """As long as it lasts, what this process and all below it ever listened on, as `listening` has it."""
    seen: dict[str, set[str]] = {}
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.2):
            for name, found in listening(os.getpid()).items():
                seen.setdefault(name, set()).update(found)

    watching = threading.Thread(target=look)
    watching.start()
    try:
        yield seen
    finally:
        ended.set()
        watching.join()


def reachable(found: dict[str, set[str]]) -> dict[str, set[str]]:
    """Those that other machines reach."""
    far = {name: {each for each in addresses if not is_loopback(each)} for name, addresses in found.items()}
    return {name: addresses for name, addresses in far.items() if addresses}


def is_loopback(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    inner = getattr(parsed, "ipv4_mapped", None)
    return (inner or parsed).is_loopback
