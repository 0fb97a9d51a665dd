"""Builds walls around a process of its own and serves tasks behind them (see sandbox.py). Run as `python -I jail.py`
with a plan in JSON; standard library only, since whatever is imported here is within reach of hostile code.

Walls: "namespaces" (own mounts, processes, network, IPC; of Linux 5.12 and up, as root or as a plain user where the
system lets one), "uid" (root without namespaces: an id that nobody else has), "limits" (none but limits of resources,
which for root bound no number of processes: sandbox.py runs no foreign code that way).
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import json
import os
import platform
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NEW = {"mounts": 0x20000, "names": 0x4000000, "ipc": 0x8000000, "users": 0x10000000, "pids": 0x20000000, "net": 1 << 30}
_READ_ONLY, _NO_SUID, _NO_DEV, _NO_EXEC, _BIND, _RECURSIVE, _PRIVATE = 1, 2, 4, 8, 0x1000, 0x4000, 0x40000
_PARENT_DEATH, _NO_NEW_PRIVILEGES, _SECCOMP, _SUBREAPER = 1, 38, 22, 36
_MOUNT_SETATTR = 442  # the same number on every architecture
_SYSTEM = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/alternatives", "/etc/ld.so.cache"]
# clone, clone3, then what is denied: socket ptrace mount umount2 pivot_root chroot unshare setns shmget msgget keyctl
# add_key request_key bpf perf_event_open userfaultfd process_vm_readv process_vm_writev, and of every architecture
# io_uring_setup open_tree move_mount fsopen mount_setattr
_CALLS = {
    "x86_64": (
        0xC000003E,
        56,
        (41, 101, 165, 166, 155, 161, 272, 308, 29, 68, 250, 248, 249, 321, 298, 323, 310, 311),
    ),
    "aarch64": (
        0xC00000B7,
        220,
        (198, 117, 40, 39, 41, 51, 97, 268, 194, 186, 219, 217, 218, 280, 241, 282, 270, 271),
    ),
}
HERE = Path(__file__).absolute().parent
_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: Any) -> None:
    """A function of libc that returns 0. Raises OSError with its errno."""
    if getattr(_libc, name)(*(a.encode() if isinstance(a, str) else a for a in arguments)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), name)


def _prctl(option: int, *arguments: Any) -> None:
    _call("prctl", option, *(ctypes.c_ulong(a) if isinstance(a, int) else a for a in arguments))


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    _call("mount", source, target, kind, ctypes.c_ulong(flags), data)


def _set_mount(path: str, add: int, remove: int = 0, *, below: bool = False) -> None:
    attributes = (ctypes.c_uint64 * 4)(add, remove, 0, 0)
    number, size = ctypes.c_long(_MOUNT_SETATTR), ctypes.c_size_t(ctypes.sizeof(attributes))
    _call("syscall", number, -100, path, 0x8000 if below else 0, ctypes.byref(attributes), size)


def _unused_id() -> int:
    """A user id that nobody else has: high in the range that this system maps, and a different one for each jail."""
    ranges = [tuple(map(int, line.split())) for line in Path("/proc/self/uid_map").read_text().splitlines()]
    first, _, count = max(ranges, key=lambda row: row[2])
    return first + count - 3 - os.getpid() % (count // 4)


def _new_namespaces() -> None:
    uid, gid, kinds = os.geteuid(), os.getegid(), dict(NEW)
    if uid == 0:
        del kinds["users"]
    _call("unshare", sum(kinds.values()))
    if uid != 0:
        for name, line in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            Path("/proc/self", name).write_text(line)


def _new_root(folder: Path, uid: int, size: int) -> None:
    """A root that shows the system's programs and this Python read-only, a few devices, our own processes, and an empty
    /tmp in memory. What is not shown cannot be read, changed or deleted."""
    _mount(None, "/", None, _RECURSIVE | _PRIVATE)
    _mount("tmpfs", str(folder), "tmpfs", _NO_SUID | _NO_DEV, "size=1m,mode=755")
    (folder / "tmp").mkdir()
    options = f"size={size},nr_inodes=4096,mode=700,uid={uid}"
    _mount("tmpfs", str(folder / "tmp"), "tmpfs", _NO_SUID | _NO_DEV, options)
    shown: list[Path] = []
    for path in sorted(map(Path, {*_SYSTEM, sys.prefix, sys.base_prefix, str(HERE)})):
        place = folder / path.relative_to("/")
        if path.is_symlink() and str(path) in _SYSTEM:
            place.symlink_to(path.readlink())
        elif path.exists() and not any(path.is_relative_to(above) for above in shown):
            _show(path, place)
            shown.append(path)
    for device in ("null", "zero", "full", "random", "urandom"):
        _show(Path("/dev", device), folder / "dev" / device)
    (folder / "dev" / "shm").symlink_to("/tmp")
    (folder / "proc").mkdir()
    with contextlib.suppress(OSError):  # where a container hides parts of it; Python can do without
        _mount("proc", str(folder / "proc"), "proc", _NO_SUID | _NO_DEV | _NO_EXEC)
    os.chdir(folder)
    _call("pivot_root", ".", ".")
    _call("umount2", ".", 2)
    os.chdir("/tmp")
    _set_mount("/", _READ_ONLY | _NO_SUID, below=True)
    _set_mount("/tmp", 0, _READ_ONLY)


def _show(path: Path, place: Path) -> None:
    (place if path.is_dir() else place.parent).mkdir(parents=True, exist_ok=True)
    if not path.is_dir():
        place.touch()
    _mount(str(path), str(place), None, _BIND | _RECURSIVE)


def _drop(uid: int) -> None:
    """No rights but those of `uid`, for good; without them the set-up above cannot be undone."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    _call("capset", (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())


def _filter_calls() -> bool:
    """Denies sockets, namespaces, mounts, tracing, memory beyond the limits (seccomp). False: an unknown machine."""
    if platform.machine() not in _CALLS:
        return False
    machine, clone, denied = _CALLS[platform.machine()]
    load, equal, at_least, bits, give = 0x20, 0x15, 0x35, 0x45, 0x06
    refuse, allow = (give, 0, 0, 0x50001), (give, 0, 0, 0x7FFF0000)
    code = [(load, 0, 0, 4), (equal, 1, 0, machine), (give, 0, 0, 0x80000000), (load, 0, 0, 0)]
    code += [(at_least, 0, 1, 0x40000000), refuse]
    for number in (*denied, 425, 428, 429, 430, _MOUNT_SETATTR):
        code += [(equal, 0, 1, number), refuse]
    code += [(equal, 0, 1, 435), (give, 0, 0, 0x50026)]  # clone3 is "not there": its flags cannot be seen
    code += [(equal, 0, 3, clone), (load, 0, 0, 16), (bits, 0, 1, sum(NEW.values())), refuse, allow]
    raw = b"".join(a.to_bytes(2, sys.byteorder) + bytes((b, c)) + d.to_bytes(4, sys.byteorder) for a, b, c, d in code)

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))

    _prctl(_SECCOMP, 2, ctypes.byref(Program(len(code), raw)))
    return True


def _limit(plan: dict[str, Any], others: int) -> None:
    limits = {
        resource.RLIMIT_AS: plan["memory"],
        resource.RLIMIT_FSIZE: plan["file_size"],
        resource.RLIMIT_NPROC: plan["processes"] + others,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
    }
    for kind, most in limits.items():
        ceiling = resource.getrlimit(kind)[1]
        most = most if ceiling == resource.RLIM_INFINITY else min(most, ceiling)
        resource.setrlimit(kind, (most, most))


def _tasks_of(uid: int) -> int:
    """How many processes and threads a user has: RLIMIT_NPROC counts them all."""
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            count += len(list((process / "task").iterdir())) if process.stat().st_uid == uid else 0
    return count


def _kill_all_in_reach() -> None:
    """Ends everything that this process may end: all of its namespace, or all of its own user id."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    _reap()


def _kill_children() -> None:
    """Ends our children, and theirs as they fall to us, for want of anything better."""
    until = time.monotonic() + 5
    mine = f" {os.getpid()} "
    while time.monotonic() < until:
        found = False
        for status in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                if status.read_text().rpartition(")")[2][2:].startswith(mine):
                    os.kill(int(status.parent.name), signal.SIGKILL)
                    found = True
        if not found:
            return
        time.sleep(0.001)
        _reap()


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _inside(plan: dict[str, Any], uid: int) -> None:
    """What happens behind the walls: the last of them is built, the tasks are served."""
    wall, others = plan["wall"], 0
    if wall == "namespaces":
        _new_root(Path(plan["folder"]), uid, plan["disk"])
    else:
        os.chdir(plan["folder"])
    if wall == "uid":
        os.chown(plan["folder"], uid, uid)
    sweep: Callable[[], None] = _kill_all_in_reach
    if wall == "limits":
        sweep, others = _kill_children, _tasks_of(uid)
        _prctl(_SUBREAPER, 1, 0, 0, 0)
    else:
        _drop(uid)
    if not os.access(os.__file__, os.R_OK):
        raise PermissionError(f"Python in {sys.base_prefix} cannot be read by another user")
    _prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    _prctl(_PARENT_DEATH, signal.SIGKILL, 0, 0, 0)  # forgotten when the user id changed
    home = str(Path.cwd())
    os.environ.clear()
    os.environ.update(HOME=home, TMPDIR=home, PATH="/usr/bin:/bin", OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    spec = importlib.util.spec_from_file_location("jailed", HERE / "jailed.py")
    assert spec and spec.loader
    jailed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(jailed)
    for library in plan["libraries"]:
        importlib.import_module(library)
    _limit(plan, others)
    offline = _filter_calls() or wall == "namespaces"
    jailed.serve({"built": True, "offline": offline}, sweep)


def main() -> None:
    plan = json.loads(sys.argv[1])
    try:
        _prctl(_PARENT_DEATH, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != plan["parent"]:
            return
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")
        if plan["wall"] == "uid" and os.geteuid() != 0:
            raise PermissionError("only root can take another user id")
        uid = os.geteuid() if os.geteuid() != 0 or plan["wall"] == "limits" else _unused_id()
        if plan["wall"] == "namespaces":
            _new_namespaces()
        if plan["wall"] == "limits":
            _prctl(_SUBREAPER, 1, 0, 0, 0)
        child = os.fork()
    except (OSError, AttributeError) as error:
        print(json.dumps({"built": False, "why": f"{plan['wall']}: {error}"}), flush=True)
        return
    if child == 0:
        try:
            _inside(plan, uid)
        except ImportError as error:
            os.write(1, (json.dumps({"built": False, "missing": str(error.name)}) + "\n").encode())
        except BaseException as error:
            os.write(1, (json.dumps({"built": False, "why": f"{plan['wall']}: {error}"}) + "\n").encode())
        os._exit(0)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGKILL))
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # not reaped yet: its number stays its own
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if plan["wall"] == "limits":
        _kill_children()
    if plan["wall"] == "uid" and os.fork() == 0:
        os.setresuid(uid, uid, uid)
        _kill_all_in_reach()
        os._exit(0)
    _reap_all()


def _reap_all() -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()


if __name__ == "__main__":
    main()
