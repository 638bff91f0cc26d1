"""Checks of a unix socket: the user at the other end, and the directory that contains the socket."""

import os
import socket
import stat
import struct
from pathlib import Path

ROOT = 0
_UID_MAP = Path("/proc/self/uid_map")
_OVERFLOW_UID = Path("/proc/sys/kernel/overflowuid")
_ALL_IDS = 2**32 - 1


class UnsafeDirectory(PermissionError):
    """Another user could have created the socket in this directory, or could replace it."""


def check_directory(path: str) -> None:
    """Raises `UnsafeDirectory` if a user other than that of this process and root could create a socket at this path,
    and `OSError` if the directory doesn't exist.

    A symbolic link isn't followed because another user can create one first in a directory such as /tmp.
    """
    directory = os.path.dirname(path) or "."
    found = os.lstat(directory)
    if stat.S_ISLNK(found.st_mode):
        raise UnsafeDirectory(f"{directory} is a symbolic link, which its owner can point elsewhere")
    if not is_trusted(found.st_uid):
        raise UnsafeDirectory(f"{directory} belongs to a different user (user ID {found.st_uid})")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UnsafeDirectory(f"others can write to {directory} (its mode is {stat.S_IMODE(found.st_mode):04o})")


def check_unix_peer(sock: socket.socket) -> bool:
    """Whether the other end of a unix socket runs as the user of this process or as root."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", credentials)
    return is_trusted(uid)


def is_trusted(uid: int) -> bool:
    """Whether the UID is that of root or of this process. In a user namespace that doesn't map all users, the overflow
    UID is neither because every unmapped user appears with it."""
    if uid == ROOT:
        return True
    return uid == os.geteuid() and (uid != _overflow_uid() or _all_users_are_mapped())


def _overflow_uid() -> int:
    try:
        return int(_OVERFLOW_UID.read_text())
    except (OSError, ValueError):
        return 65534


def _all_users_are_mapped() -> bool:
    try:
        return sum(int(line.split()[2]) for line in _UID_MAP.read_text().splitlines()) >= _ALL_IDS
    except (OSError, ValueError, IndexError):
        return False
