"""Checks of a unix socket: the user at the other end, and the directory."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from django_clusterstate.exceptions import Unavailable
from django_clusterstate.wire import unix_sockets
from django_clusterstate.wire.address import UnixAddress
from django_clusterstate.wire.aio import connect
from django_clusterstate.wire.blocking import BlockingConnection
from django_clusterstate.wire.unix_sockets import UnsafeDirectory, check_directory, check_unix_peer, is_trusted
from testproject.processes import ROOT

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")


def _open(folder: Path) -> Path:
    folder.mkdir()
    folder.chmod(0o777)
    return folder


def _sticky(folder: Path) -> Path:
    folder.mkdir()
    folder.chmod(0o1777)
    return folder


def _group(folder: Path) -> Path:
    folder.mkdir()
    folder.chmod(0o770)
    return folder


def _link(folder: Path) -> Path:
    folder.with_name("target").mkdir(mode=0o700)
    folder.symlink_to(folder.with_name("target"))
    return folder


def _foreign(folder: Path) -> Path:
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, 12345)
    return folder


UNSAFE = [
    pytest.param(_open, "others can write", id="open"),
    pytest.param(_sticky, "others can write", id="sticky"),
    pytest.param(_group, "others can write", id="group"),
    pytest.param(_link, "is a symbolic link", id="link"),
    pytest.param(_foreign, "belongs to a different user", id="foreign", marks=needs_root),
]


@pytest.mark.parametrize(("make", "why"), UNSAFE)
def test_directory_in_which_another_user_could_create_the_socket_is_refused(
    folder: Path, make: Callable[[Path], Path], why: str
) -> None:
    with pytest.raises(UnsafeDirectory, match=why):
        check_directory(str(make(folder / "sockets") / "node.sock"))


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o500, 0o2700])
def test_directory_of_our_user_is_accepted(folder: Path, mode: int) -> None:
    own = folder / "sockets"
    own.mkdir()
    own.chmod(mode)
    check_directory(str(own / "node.sock"))


@pytest.mark.parametrize(("make", "why"), UNSAFE)
def test_requester_connects_to_no_socket_in_an_unsafe_folder(
    folder: Path, make: Callable[[Path], Path], why: str
) -> None:
    path = str(make(folder / "sockets") / "node.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        listener.settimeout(0.05)
        with pytest.raises(Unavailable, match=why):
            BlockingConnection(UnixAddress(path), (), 1.0)
        with pytest.raises(Unavailable, match=why):
            asyncio.run(connect(UnixAddress(path), (), 1.0))
        with pytest.raises(TimeoutError):
            listener.accept()


def test_missing_directory_means_that_there_is_no_node(folder: Path) -> None:
    with pytest.raises(Unavailable, match="No such file"):
        BlockingConnection(UnixAddress(str(folder / "none" / "node.sock")), (), 1.0)


# -- the other end ------------------------------------------------------------------------------------------------

PAIR = """
import os, socket
from django_clusterstate.wire.unix_sockets import check_unix_peer
one, other = socket.socketpair(socket.AF_UNIX)
print(os.geteuid(), check_unix_peer(one))
"""


def _in_namespace(*options: str) -> list[str]:
    command = ["unshare", "--user", *options, sys.executable, "-c", PAIR]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=60)
    if done.returncode and "unshare" in done.stderr:
        pytest.skip(f"user namespaces cannot be made here: {done.stderr.strip()}")
    assert not done.returncode, done.stderr
    return done.stdout.split()


@pytest.mark.process
def test_user_that_the_namespace_does_not_map_is_not_trusted() -> None:
    """All such users have the same uid, so any of them could be at the other end."""
    uid, trusted = _in_namespace()
    assert uid == unix_sockets._OVERFLOW_UID.read_text().strip()
    assert trusted == "False"


@pytest.mark.process
def test_user_that_the_namespace_maps_is_trusted() -> None:
    assert _in_namespace("--map-root-user") == ["0", "True"]


def test_overflow_uid_is_a_user_where_all_users_are_mapped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 65534)
    monkeypatch.setattr(unix_sockets, "_UID_MAP", tmp_path / "map")
    (tmp_path / "map").write_text("         0          0 4294967295\n")
    assert is_trusted(65534)
    (tmp_path / "map").write_text("         0     100000      65536\n")
    assert not is_trusted(65534)
    (tmp_path / "map").unlink()
    assert not is_trusted(65534)
    assert is_trusted(0)
    assert not is_trusted(33)


def test_this_process_is_trusted() -> None:
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        assert check_unix_peer(one)
