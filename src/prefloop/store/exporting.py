"""An export in a process of its own, so that it takes no time from those who label meanwhile. Where the process that
asked for it ends, it still writes its file whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from sqlalchemy import Engine

from prefloop.store.exchange import export
from prefloop.store.labels import open_store
from prefloop.types import Json, PrefloopError


def export_apart(engine: Engine, run: str, path: Path, format: str, *, key: bytes) -> dict[str, Json]:
    """As `exchange.export`, but for a manifest of which only the counts are returned."""
    url = engine.url.render_as_string(hide_password=False)  # not among the arguments, which others can read
    asked = {"url": url, "run": run, "path": str(path.absolute()), "format": format, "key": key.hex()}
    command = [sys.executable, "-m", "prefloop.store.exporting"]
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, check=False)
    if done.returncode == 1 and done.stdout:
        raise PrefloopError(json.loads(done.stdout))
    if done.returncode != 0:
        raise RuntimeError(f"the export ended with {done.returncode}: {done.stderr[-2000:]}")
    counts: dict[str, Json] = json.loads(done.stdout)
    return counts


def main() -> int:
    asked = json.loads(sys.stdin.read())
    os.nice(10)
    try:
        with open_store(asked["url"]) as store:
            path, key = Path(asked["path"]), bytes.fromhex(asked["key"])
            made = export(store, asked["run"], path, asked["format"], key=key)
    except PrefloopError as error:
        print(json.dumps(str(error)))
        return 1
    print(json.dumps({name: made[name] for name in ("comparisons", "labels")}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
