"""`prefloop serve` as a process of its own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import ssl
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from prefloop.types import PrefloopError
from prefloop.web import serve
from prefloop.web.serve import Place
from prefloop.web.workspace import Workspace
from tests.web.serving import Visitor

PASSWORD = "correct horse battery"
COMMAND = [sys.executable, "-m", "prefloop", "serve", "--port", "0"]


@dataclass
class Served:
    process: subprocess.Popen[str]
    lines: list[str]
    url: str

    def stop(self, number: int = signal.SIGINT) -> tuple[int, str, str]:
        """Status, and what it printed from its greeting on."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=120)
        return self.process.returncode, out, err


@contextlib.contextmanager
def serving(folder: Path, *arguments: str, typed: str = "") -> Iterator[Served]:
    """Start the command and wait for its greeting."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [*COMMAND, *arguments], cwd=folder, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )
    assert process.stdin and process.stdout
    try:
        process.stdin.write(typed)
        process.stdin.close()
        process.stdin = None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if re.search(r"/start/|/login$", line):
                break
        found = re.search(r"https?://[^ /]+:\d+", "".join(lines))
        assert found, process.communicate(timeout=120)
        yield Served(process, lines, found[0])
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=120)


def refused(folder: Path, *arguments: str) -> str:
    """What the command says where it does not start."""
    done = subprocess.run([*COMMAND, *arguments], cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1 and done.stdout == "", done
    return done.stderr


def test_a_fresh_folder_is_served_by_one_command_and_left_private(tmp_path: Path) -> None:
    with serving(tmp_path) as served, Visitor(base_url=served.url, timeout=120) as visitor:
        link = re.findall(r"/start/[A-Za-z0-9_-]{43}$", "".join(served.lines), re.MULTILINE)
        assert len(link) == 1 and served.url.startswith("http://127.0.0.1:")
        visitor.get(link[0])
        assert visitor.submit("/invite", name="Ada").headers["location"] == "/"
        assert visitor.get("/people").status_code == 200
        assert visitor.get("/health").json() == {"ok": True, "reason": ""}
        made = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
        assert {"prefloop.db", "prefloop.db-wal", "prefloop.key"} <= set(made) and set(made.values()) == {0o600}
        status, out, err = served.stop()
        assert (status, err) == (0, "") and out.endswith("Stopped. Every answer that was acknowledged is kept.\n")
        assert link[0] not in out  # 13: nothing that comes in is logged
    with serving(tmp_path) as served, Visitor(base_url=served.url, timeout=120) as visitor:
        visitor.get(re.findall(r"/start/\S+", "".join(served.lines))[0])
        assert "Welcome back, Ada" in visitor.get("/invite").text


def test_it_ends_in_order_when_the_system_asks(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        status, _, err = served.stop(signal.SIGTERM)
        assert (status, err) == (-signal.SIGTERM, "")


def test_it_serves_postgresql_as_well(tmp_path: Path, postgres_url: str) -> None:
    with serving(tmp_path, "--database", postgres_url) as served, Visitor(base_url=served.url, timeout=120) as visitor:
        visitor.get(re.findall(r"/start/\S+", "".join(served.lines))[0])
        assert visitor.submit("/invite", name="Ada", password=PASSWORD).status_code == 303
        assert visitor.submit("/people/invite", role="labeler").status_code == 200
        assert visitor.get("/health").json() == {"ok": True, "reason": ""}
        assert not (tmp_path / "prefloop.db").exists()


def test_16_other_machines_reach_it_only_where_an_admin_has_a_password(tmp_path: Path) -> None:
    assert "prefloop serve --host 0.0.0.0 --add-admin NAME" in refused(tmp_path, "--host", "0.0.0.0")
    typed = f"{PASSWORD}\n{PASSWORD}\n"
    with serving(tmp_path, "--host", "0.0.0.0", "--add-admin", "Ada", typed=typed) as served:
        greeting = "".join(served.lines)
        assert greeting.endswith("/login\n") and "/start/" not in greeting
        url = served.url.replace("0.0.0.0", "127.0.0.1")
        with Visitor(base_url=url, timeout=120) as visitor:
            assert visitor.submit("/login", name="Ada", password=PASSWORD).status_code == 303
        _, out, err = served.stop()
        assert "Without TLS" in greeting and PASSWORD not in greeting + out + err
    with serving(tmp_path, "--host", "0.0.0.0", "--name", "labels.example") as served:
        assert served.url.startswith("http://labels.example:")


def test_an_admin_can_be_given_a_new_password(workspace: Workspace) -> None:
    accounts = workspace.accounts
    accounts.create("Ada", "labeler", by="prefloop")
    for name, password in (("ada", PASSWORD), ("ada", PASSWORD[::-1]), ("bob", PASSWORD)):
        serve._add_admin(accounts, name, password)
        found = accounts.check_password(name, password, "")
        assert found is not None and found.may("admin")
    with pytest.raises(PrefloopError, match="10 to 256"):
        serve._add_admin(accounts, "carol", "short")


def test_tls(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    assert "--tls-certificate FILE --tls-key FILE" in refused(tmp_path, "--tls-certificate", str(certificate))
    swapped = refused(tmp_path, "--tls-certificate", str(key), "--tls-key", str(certificate))
    assert "are no certificate and its key" in swapped
    trust = ssl.create_default_context(cafile=str(certificate))
    with (
        serving(tmp_path, "--tls-certificate", str(certificate), "--tls-key", str(key)) as served,
        Visitor(base_url=served.url, timeout=20, verify=trust) as visitor,
    ):
        assert served.url.startswith("https://")
        visitor.get(re.findall(r"/start/\S+", "".join(served.lines))[0])
        response = visitor.submit("/invite", name="Ada")
        assert response.status_code == 303 and response.headers["strict-transport-security"] == "max-age=31536000"
        cookie = response.headers["set-cookie"]
        assert cookie.startswith("__Host-prefloop-") and {"Secure", "HttpOnly", "Path=/"} <= set(cookie.split("; "))
        assert visitor.get("/people").status_code == 200


def test_a_port_that_is_taken_is_named_and_without_a_wish_the_next_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        with pytest.raises(PrefloopError, match=f"Port {taken} is taken.*--port"):
            serve._listen(Place(port=taken))
        monkeypatch.setattr(serve, "FIRST_PORT", taken)
        with serve._listen(Place()) as found:
            assert taken < found.getsockname()[1] < taken + 20
        monkeypatch.setattr(serve, "_PORTS", 1)
        with pytest.raises(PrefloopError, match=f"Port {taken} is taken"):
            serve._listen(Place())


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.name.invalid", "300.1.1.1", ""])
def test_an_address_that_is_not_ours_is_named(host: str) -> None:
    if not host:
        assert not Place(host=host).local  # it means all
        return
    with pytest.raises(PrefloopError, match="Cannot listen at"):
        serve._listen(Place(host=host, port=0))


def test_what_counts_as_this_machine_alone() -> None:
    local = [host for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost") if Place(host=host).local]
    assert len(local) == 4
    assert not any(Place(host=host).local for host in ("0.0.0.0", "::", "10.0.0.1", "labels.example", "localhost.evil"))


def test_the_address_of_a_proxy_is_its_origin_and_others_reach_it() -> None:
    for given in ("https://Labels.example.org", "https://labels.example.org/", "https://labels.example.org:443"):
        assert Place(public=given).origin == "https://labels.example.org" and not Place(public=given).local
    assert Place(public="https://labels.example.org:8443").origin == "https://labels.example.org:8443"
    assert Place().origin == ""
    for odd in ("http://labels.example.org", "labels.example.org", "https://labels.example.org/app", "https://a b"):
        with pytest.raises(PrefloopError, match=r"--public-url .* is no address"):
            _ = Place(public=odd).origin


def test_behind_a_proxy_an_admin_needs_a_password(tmp_path: Path) -> None:
    told = refused(tmp_path, "--public-url", "https://labels.example.org")
    assert "prefloop serve --public-url https://labels.example.org --add-admin NAME" in told


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    key = tmp_path / "prefloop.key"
    key.write_text("0" * 64)
    key.chmod(0o644)
    assert "chmod 600" in refused(tmp_path)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc, which is not here")
def test_20_memory_stays_bounded_under_large_requests(tmp_path: Path) -> None:
    def peak(process: int) -> float:
        return int(re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())[0]) / 1024

    with serving(tmp_path) as served, Visitor(base_url=served.url, timeout=60) as visitor:
        visitor.get(re.findall(r"/start/\S+", "".join(served.lines))[0])
        visitor.submit("/invite", name="Ada")
        before, csrf = peak(served.process.pid), visitor.csrf
        kind = {"content-type": "application/x-www-form-urlencoded", "x-csrf-token": csrf}
        for content in (b"a" * 1_900_000, b"a=1&" * 470_000, b"&" * 1_900_000, b"%" * 1_900_000):
            assert visitor.post("/people/invite", content=content, headers=kind).status_code in (200, 400)
        json = {"content-type": "application/json", "x-csrf-token": csrf}
        for content in (b"[" * 1_900_000, b'"' * 1_900_000, b"[" + b"1," * 900_000 + b"1]", b'{"a":' * 300_000):
            assert visitor.post("/people/invite", content=content, headers=json).status_code == 400

        def much() -> Iterator[bytes]:
            for _ in range(2000):
                yield bytes(2**20)

        with contextlib.suppress(Exception):  # it is cut off while it is being sent
            visitor.post("/people/invite", content=much(), headers=kind)
        assert visitor.get("/people").status_code == 200
        assert peak(served.process.pid) - before < 150  # MiB


def test_the_help_names_every_option() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prefloop", "serve", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    for option in (
        "--host",
        "--port",
        "--name",
        "--tls-certificate",
        "--tls-key",
        "--public-url",
        "--add-admin",
        "--database",
    ):
        assert f"  {option} " in done.stdout
