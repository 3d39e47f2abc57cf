"""Processes of other programs: whether they are there, and a block in which one stands still."""

import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg
from sqlalchemy.engine import URL, make_url


def state_of(pid: int) -> str | None:
    """As the kernel names it (T: stopped; Z: dead, and not collected yet), or None where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # the second where it ends while its file is read
        return None


def alive(pid: int) -> bool:
    """Whether a process is there and has not ended: an orphan that nobody waits for stays listed."""
    return state_of(pid) not in (None, "Z")


@contextmanager
def held(pid: int, database_url: str) -> Iterator[None]:
    """A process stands still in the block, but in no transaction, in which it would hold up everybody."""
    os.kill(pid, signal.SIGSTOP)
    while _in_transaction(make_url(database_url)):
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.05)
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _in_transaction(url: URL) -> bool:
    """Whether somebody writes, or on Postgres reads, in a database."""
    if url.get_backend_name() == "sqlite":
        with closing(sqlite3.connect(str(url.database), timeout=0, isolation_level=None)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return True
            connection.execute("ROLLBACK")
        return False
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain) as connection:
        return connection.execute(OTHERS).fetchone() is not None


OTHERS = """
SELECT FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL
"""
