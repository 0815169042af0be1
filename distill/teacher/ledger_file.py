"""The ledger's file: its tables and their earlier forms, how it is opened, and who holds it."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from pathlib import Path
from typing import IO

from distill.errors import DistillError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY,
    teacher TEXT NOT NULL,
    method TEXT NOT NULL,
    seed_row TEXT NOT NULL,
    sample INTEGER NOT NULL,
    text TEXT NOT NULL,
    refusal TEXT,
    finish_reason TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    cost_usd REAL,
    attempts INTEGER NOT NULL,
    latency_seconds REAL NOT NULL,
    created_at REAL NOT NULL,
    reasoning_tokens INTEGER NOT NULL DEFAULT 0,
    logprobs BLOB
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS failures (
    key TEXT PRIMARY KEY,
    teacher TEXT NOT NULL,
    method TEXT NOT NULL,
    seed_row TEXT NOT NULL,
    sample INTEGER NOT NULL,
    message TEXT NOT NULL,
    status INTEGER,
    permanent INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    created_at REAL NOT NULL
) WITHOUT ROWID;
"""
_BATCHES = """
CREATE TABLE IF NOT EXISTS batches (
    token TEXT PRIMARY KEY,
    teacher TEXT NOT NULL,
    path TEXT NOT NULL,
    file_id TEXT,
    batch_id TEXT,
    created_at REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS batch_requests (
    key TEXT PRIMARY KEY,
    token TEXT NOT NULL,
    method TEXT NOT NULL,
    seed_row TEXT NOT NULL,
    sample INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS batch_requests_by_token ON batch_requests (token);
"""
_VERSION = 3
_FROM_VERSION_1 = """
ALTER TABLE answers ADD COLUMN reasoning_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE answers ADD COLUMN logprobs BLOB;
"""
_CHANGES = {0: _SCHEMA + _BATCHES, 1: _FROM_VERSION_1 + _BATCHES, 2: _BATCHES}


def connect(path: Path) -> sqlite3.Connection:
    """Open for writing, brought up to date."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=60)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version not in (*_CHANGES, _VERSION):
            raise sqlite3.DatabaseError(f"it is of version {version}, this program reads {_VERSION}")
        if version != _VERSION:  # in one transaction: a kill leaves the old version or the new
            connection.executescript(f"BEGIN IMMEDIATE;{_CHANGES[version]}PRAGMA user_version={_VERSION};COMMIT;")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def connect_to_read(path: Path) -> sqlite3.Connection:
    """Open a ledger that another process may hold."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False, timeout=60)


def hold(path: Path) -> IO[str]:
    """Lock the ledger for this process."""
    handle = open(path.with_name(path.name + ".lock"), "a+", encoding="utf-8")  # noqa: SIM115 - held until close()
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.seek(0)
        holder = handle.read().strip() or "another process"
        handle.close()
        raise DistillError(f"{path} is in use by {holder}", remedy="wait for it or stop it") from None
    handle.seek(0)
    handle.truncate()
    handle.write(f"process {os.getpid()}")
    handle.flush()
    return handle


def as_user_error(path: Path, error: sqlite3.Error) -> DistillError:
    """What SQLite says, and what to do."""
    text = str(error)
    if "disk is full" in text or "disk I/O" in text:
        return DistillError(
            f"cannot write {path}: {text}", remedy="make room on that disk and run again; answers so far are kept"
        )
    if isinstance(error, sqlite3.OperationalError):
        return DistillError(f"cannot use {path}: {text}", remedy="check that the folder can be written")
    return DistillError(
        f"{path} is not a readable ledger: {text}", remedy="move it away to ask everything anew, or restore a copy"
    )
