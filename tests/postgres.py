"""A real PostgreSQL server for tests: it can be restarted, which closes every connection to it."""

import glob
import os
import pwd
import shutil
import subprocess
from pathlib import Path
from typing import Any

from testproject.processes import free_port

PROGRAMS = [*sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True), *os.get_exec_path()]
SECONDS = 60


def program(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join(PROGRAMS))


class PostgreSQL:
    """Listens on a loopback port. `folder` is its own, and empty. Run as root, it uses the account `postgres`."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self._data = folder / "data"
        self._account: dict[str, Any] = {}
        if os.geteuid() == 0:  # the server refuses to run as root
            account = pwd.getpwnam("postgres")
            os.chown(folder, account.pw_uid, account.pw_gid)
            self._account = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        self._run("initdb", "-D", str(self._data), "-U", "test", "-A", "trust", "-E", "UTF8", "--no-sync", "--locale=C")
        self.start()

    @property
    def settings(self) -> dict[str, Any]:
        """The entry of `DATABASES`."""
        return {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": "postgres",
            "USER": "test",
            "HOST": "127.0.0.1",
            "PORT": self.port,
        }

    def start(self) -> None:
        options = f"-c fsync=off -h 127.0.0.1 -p {self.port} -k {self._folder}"
        log = str(self._folder / "log")
        self._run("pg_ctl", "start", "-w", "-t", str(SECONDS), "-D", str(self._data), "-l", log, "-o", options)

    def restart(self) -> None:
        self.stop()
        self.start()

    def stop(self) -> None:
        self._run("pg_ctl", "stop", "-w", "-t", str(SECONDS), "-m", "fast", "-D", str(self._data))

    def _run(self, name: str, *arguments: str) -> None:
        path = program(name)
        assert path is not None
        done = subprocess.run(
            [path, *arguments],
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # the server inherits it, so a pipe would never end
            stderr=subprocess.DEVNULL,
            timeout=2 * SECONDS,
            check=False,
            **self._account,
        )
        if done.returncode:
            log = self._folder / "log"
            said = log.read_text(errors="replace") if log.exists() else ""
            raise RuntimeError(f"{name} failed with exit code {done.returncode}\n{said}")
