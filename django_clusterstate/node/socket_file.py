"""The file of the node's unix socket: made where no other user can replace it, and removed at the end."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from ..wire.address import UnixAddress
from ..wire.unix_sockets import UnsafeDirectory, check_directory
from .config import NodeError


class SocketFile:
    """The node's unix socket, bound and listening once constructed. Raises `NodeError` if the path can't be used, and
    the `OSError` of `bind()`."""

    def __init__(self, address: UnixAddress, backlog: int) -> None:
        self._path = Path(address.path)
        _make_directory(self._path)
        with _locked(self._path.parent):
            _remove_stale(self._path)
            self.socket = _bind(address)
            try:
                # Until the socket listens, another node that starts takes the file for that of a killed node.
                self.socket.listen(backlog)
                self._file = _identity(self._path)
            except OSError:
                self.socket.close()
                raise

    def remove(self) -> None:
        """Removes the file, unless it is another node's by now. Call it while the socket still listens.

        While the socket is open its inode number isn't given out again, and no other node takes the path of a socket
        that answers.
        """
        with contextlib.suppress(OSError):
            if _identity(self._path) == self._file:
                self._path.unlink()


def _identity(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino


def _make_directory(path: Path) -> None:
    try:
        with contextlib.suppress(FileExistsError):
            path.parent.mkdir(mode=0o700, parents=True)
        check_directory(str(path))
    except UnsafeDirectory as error:
        raise NodeError(
            f"{error}, so the socket is not safe there. Choose another directory with --socket, or correct this one."
        ) from error
    except OSError as error:
        raise NodeError(
            f"the directory of the socket {path} cannot be created: {error}. Choose another with --socket."
        ) from error
    if not path.parent.is_dir():
        raise NodeError(f"the directory of the socket {path} cannot be created: {path.parent} is not a directory.")


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Locks the directory against other nodes: two that start at the same moment would both find the file of a killed
    node, and the second would remove the file of the first."""
    number = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(number, fcntl.LOCK_EX)
        yield
    finally:
        os.close(number)


def _bind(address: UnixAddress) -> socket.socket:
    """A socket that only this user can open."""
    sock = socket.socket(socket.AF_UNIX)
    umask = os.umask(0o177)
    try:
        sock.bind(address.path)
    except OSError:
        sock.close()
        raise
    finally:
        os.umask(umask)
    return sock


def _remove_stale(path: Path) -> None:
    """Removes the socket of a node that was killed; a running one keeps it."""
    if not path.exists():
        return
    if not path.is_socket():
        raise NodeError(f"{path} exists and is not a socket. Choose another with --socket.")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        except OSError as error:
            raise NodeError(f"{path} cannot be taken over: {error}. Choose another with --socket.") from error
        else:
            raise NodeError(f"{path} is taken: a node serves it already. Stop it, or choose another with --socket.")
