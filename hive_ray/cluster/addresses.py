"""Addresses of this machine: where a cluster that is started here listens, where its sockets lie. Imports no Ray."""

import ipaddress
import os
import sys
import tempfile

LOOPBACK_VARIABLE = ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
"""The variable by which Ray uses the loopback address alone. Ray 2.60 listens on every interface unless its node's own
address is the loopback one, which on Linux it refuses to be told; this switch is meant for systems whose firewalls
would ask."""
MAX_FOLDER_LENGTH = 38
"""Characters of a folder in which sockets, Ray's too, have addresses of the 107 bytes at most that the system takes."""
SHORT_FOLDER = "/tmp"


def start_on_loopback() -> None:
    """Have Ray, which reads its environment as it is imported, listen on the loopback address alone.

    For commands, before they import Ray: it has no effect afterwards, nor with RAY_ADDRESS, whose cluster this machine
    may have to reach by another address.
    """
    if "ray" not in sys.modules and not os.environ.get("RAY_ADDRESS"):
        os.environ.setdefault(*LOOPBACK_VARIABLE)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address: one such as 127.0.0.1 or ::1, or `localhost`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def fits_sockets(folder: str) -> bool:
    """Whether sockets below a folder can have addresses: it is short, and Ray can pass on its name."""
    return folder.isascii() and len(folder) <= MAX_FOLDER_LENGTH


def socket_folder() -> str:
    """The folder for temporary files if it holds sockets, else /tmp."""
    folder = tempfile.gettempdir()
    return folder if fits_sockets(folder) else SHORT_FOLDER
