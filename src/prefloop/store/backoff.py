"""How long to wait after wrong passwords.

Each failure beyond the first FREE ones asks for 1, 2, 4, ... up to LONGEST seconds until the next try; a try before
that is neither looked at nor counted. A count is forgotten FORGOTTEN seconds after its last failure.

An address waits for its own failures. An account's failures, wherever they came from, hold up only addresses that
failed themselves: however hard others try, whoever knows the password comes in at once from anywhere else."""

from __future__ import annotations

import hashlib
import ipaddress
from typing import Literal

from sqlalchemy import Connection, RowMapping, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite

from prefloop.store.tables import attempts

FREE = {"account": 5, "address": 10}
LONGEST = 300.0
FORGOTTEN = 3600.0


def charge(connection: Connection, account: str, address: str, now: float) -> float:
    """Count a try as failed, before it is looked at: tries at once do not slip through together.

    Returns the seconds to wait. Above 0, nothing was counted, and the try must not be looked at."""
    connection.execute(delete(attempts).where(attempts.c.last < now - FORGOTTEN))
    keys = _account(account), _address(address)
    query = select(attempts).where(attempts.c.key.in_(keys))
    found = {row["key"]: row for row in connection.execute(query).mappings()}
    of_account, of_address = (found.get(key) for key in keys)
    wait = 0.0 if of_address is None else max(_wait("address", of_address, now), _wait("account", of_account, now))
    if wait <= 0:
        dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
        new = dialect.insert(attempts).values([{"key": key, "count": 1, "last": now} for key in keys])
        more = {"count": attempts.c.count + 1, "last": now}
        connection.execute(new.on_conflict_do_update(index_elements=["key"], set_=more))
    return wait


def succeeded(connection: Connection, account: str, address: str) -> None:
    """The try that was charged was right: the account begins anew. The address's other failures stand, or a right
    password of one's own would buy guesses at another's."""
    mine = attempts.c.key == _address(address)
    connection.execute(update(attempts).where(mine).values(count=attempts.c.count - 1))
    connection.execute(delete(attempts).where((attempts.c.key == _account(account)) | (mine & (attempts.c.count <= 0))))


def _wait(kind: Literal["account", "address"], row: RowMapping | None, now: float) -> float:
    if row is None or row["count"] < FREE[kind]:
        return 0.0
    asked: float = min(2.0 ** min(row["count"] - FREE[kind], 30), LONGEST)
    left: float = row["last"] + asked - now
    return min(left, asked)  # where a clock was set back, no more than was asked


def _account(name: str) -> str:
    return "account:" + hashlib.sha256(name.lower().encode("utf-8", "surrogatepass")).hexdigest()


def _address(address: str) -> str:
    """An IPv6 address stands for its /64, which is one customer's."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return f"address:{address}"
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is None:
            return f"address:{ipaddress.ip_network((parsed, 64), strict=False)}"
        parsed = parsed.ipv4_mapped
    return f"address:{parsed}"
