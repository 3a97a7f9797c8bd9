"""Addresses of this machine: where a cluster that is started here listens and keeps its sockets. Imports no Ray."""

import ipaddress
import os
import sys
import tempfile

LOOPBACK_VARIABLE = ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
"""A variable and the value with which Ray uses only the loopback address.

Ray 2.60 listens on all interfaces unless its node's address is the loopback address, and on Linux it does not accept
that address. The variable is meant for systems whose firewalls would ask.
"""
MAX_FOLDER_LENGTH = 38
"""Longest path in characters of a folder for sockets: the system limits a socket's path, with Ray's subfolders, to 107
bytes."""
SHORT_FOLDER = "/tmp"
"""The folder for sockets if that of temporary files is too long."""


def start_on_loopback() -> None:
    """Make Ray listen only on the loopback address. Must be called before Ray is imported.

    Has no effect after that, nor with RAY_ADDRESS: that cluster may need to reach this machine at another address.
    """
    if "ray" not in sys.modules and not os.environ.get("RAY_ADDRESS"):
        os.environ.setdefault(*LOOPBACK_VARIABLE)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address, such as 127.0.0.1, ::1 or `localhost`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def fits_sockets(folder: str) -> bool:
    """Whether a folder can hold sockets: its path is short enough and ASCII, as Ray requires."""
    return folder.isascii() and len(folder) <= MAX_FOLDER_LENGTH


def socket_folder() -> str:
    """The folder for temporary files if it can hold sockets, otherwise /tmp."""
    folder = tempfile.gettempdir()
    return folder if fits_sockets(folder) else SHORT_FOLDER
