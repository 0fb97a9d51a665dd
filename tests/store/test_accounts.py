from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from argon2 import PasswordHasher, extract_parameters
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, Table, insert, select

from prefloop.store import audit, backoff, db, invites, passwords, sessions, tables
from prefloop.store.accounts import Accounts, TooManyTriesError, check_name
from prefloop.store.campaigns import MissingError
from prefloop.store.invites import Invites
from prefloop.store.sessions import Sessions
from prefloop.types import PrefloopError
from tests.store.scene import TurnedClock

RIGHT, WRONG = "correct horse battery", "incorrect horse battery"
HOUR, DAY = 3600.0, 24 * 3600.0


@dataclass
class Hall:
    engine: Engine
    clock: TurnedClock
    accounts: Accounts
    sessions: Sessions
    invites: Invites

    def admin(self) -> str:
        return self.accounts.create("Ada", "admin", by="prefloop").name

    def text(self) -> str:
        """All that the database holds."""
        with db.transaction(self.engine, write=False) as connection:
            return repr([connection.execute(select(table)).all() for table in tables.metadata.sorted_tables])

    def count(self, table: Table) -> int:
        with db.transaction(self.engine, write=False) as connection:
            return len(connection.execute(select(table)).all())

    def wait(self, account: str, address: str) -> float:
        with db.transaction(self.engine, write=True) as connection:
            return backoff.charge(connection, account, address, self.clock())


@pytest.fixture(autouse=True)
def _quick_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "_HASHER", PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))
    passwords._nobodys.cache_clear()


@pytest.fixture
def hall(url: str) -> Iterator[Hall]:
    engine, clock = db.connect(url), TurnedClock()
    yield Hall(engine, clock, Accounts(engine, clock), Sessions(engine, clock), Invites(engine, clock))
    engine.dispose()


def at_once(count: int, work: Callable[[int], Any]) -> list[Any]:
    """What `work` gives, or raises, in so many threads that begin together."""
    barrier, results = threading.Barrier(count), list[Any](range(count))

    def run(number: int) -> None:
        barrier.wait()
        try:
            results[number] = work(number)
        except PrefloopError as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_accounts_are_found_in_whatever_case(hall: Hall) -> None:
    hall.accounts.create("zoe", "labeler", "nurses", by="prefloop")
    hall.accounts.create("Ada Byron-2", "admin", password=RIGHT, by="prefloop")
    assert [account.name for account in hall.accounts.all()] == ["Ada Byron-2", "zoe"]
    found = hall.accounts.find("ADA BYRON-2")
    assert found is not None and (found.name, found.role, found.has_password) == ("Ada Byron-2", "admin", True)
    assert "argon2" not in repr(found)
    assert hall.accounts.find("bob") is None
    with pytest.raises(MissingError):
        hall.accounts.get("bob")


def test_a_name_is_taken_in_whatever_case_and_by_those_who_labeled_without_an_account(hall: Hall) -> None:
    hall.admin()
    with db.transaction(hall.engine, write=True) as connection:
        connection.execute(insert(tables.annotators).values(name="Eve (import)", simulated=False))
        connection.execute(insert(tables.annotators).values(name="Mallory", simulated=True))
    for taken in ("Ada", "aDA", "mallory"):
        with pytest.raises(PrefloopError, match="taken"):
            hall.accounts.create(taken, "labeler", by="Ada")
    assert len(hall.accounts.all()) == 1


@pytest.mark.parametrize("name", ["a", "7", "Ada Byron", "a.b_c-d", "a" * 40])
def test_good_names(name: str) -> None:
    check_name(name)


BAD_NAMES = ["", " ", " a", "a ", ".", "..", "a" * 41, "a\n", "a\r\nSet-Cookie: x", "a\0b", "a/b", "a%b", "<b>", "a'b"]
ODD_NAMES = ["\u0430da", "ada\u202e", "a\u200bb", "a\u0301", "\u00b2", "\uff21da"]
KEPT_NAMES = ["simulated", "Simulated:7", "simulatedx", "judge-a", "PREFLOOP"]


@pytest.mark.parametrize("name", BAD_NAMES + ODD_NAMES + KEPT_NAMES)
def test_bad_names(name: str) -> None:
    with pytest.raises(PrefloopError, match="name"):
        check_name(name)


def test_roles_and_groups_are_checked(hall: Hall) -> None:
    admin = hall.admin()
    for refused in (
        lambda: hall.accounts.create("bob", "owner", by=admin),
        lambda: hall.accounts.create("bob", "labeler", "a\nb", by=admin),
        lambda: hall.invites.new("owner", by=admin),
        lambda: hall.invites.new("labeler", "<b>", by=admin),
        lambda: hall.accounts.set_role(admin, "", by=admin),
        lambda: hall.accounts.set_group(admin, "x" * 41, by=admin),
    ):
        with pytest.raises(PrefloopError, match=r"role|group"):
            refused()
    assert hall.accounts.find("bob") is None


def test_each_role_may_do_what_those_before_it_may_unless_paused(hall: Hall) -> None:
    hall.admin()
    made = {role: hall.accounts.create(role, role, by="Ada") for role in ("labeler", "reviewer", "admin")}
    may = {name: [account.may(role) for role in made] for name, account in made.items()}
    assert may == {"labeler": [True, False, False], "reviewer": [True, True, False], "admin": [True, True, True]}
    hall.accounts.pause("admin", True, by="Ada")
    assert [hall.accounts.get("admin").may(role) for role in made] == [True, False, False]


def test_a_password_is_kept_as_argon2id_and_checked(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "_HASHER", PasswordHasher())
    hall.accounts.create("Ada", "admin", password=RIGHT, by="prefloop")
    hall.accounts.create("bob", "labeler", by="Ada")
    with db.transaction(hall.engine, write=False) as connection:
        kept = connection.execute(select(tables.accounts.c.password)).scalars().all()
    settings = extract_parameters(next(filter(None, kept)))
    assert (settings.type.name, settings.memory_cost, settings.time_cost) == ("ID", 65536, 3)
    assert RIGHT not in hall.text()
    found = hall.accounts.check_password("ada", RIGHT, "1.2.3.4")
    assert found is not None and found.name == "Ada"
    for name, password in (("Ada", WRONG), ("bob", RIGHT), ("bob", ""), ("nobody", RIGHT), ("Ada' OR 1=1 --", RIGHT)):
        assert hall.accounts.check_password(name, password, name[:3]) is None


@pytest.mark.parametrize("password", ["", "a" * 9, "a" * 257])
def test_passwords_have_a_length(hall: Hall, password: str) -> None:
    with pytest.raises(PrefloopError, match="10 to 256"):
        hall.accounts.create("Ada", "admin", password=password, by="prefloop")
    assert hall.accounts.find("Ada") is None


def test_one_password_has_one_spelling() -> None:
    composed, apart = "Schlüssel-Bund", "Schlu\u0308ssel-Bund"
    assert composed != apart and passwords.matches(passwords.hashed(composed), apart)
    assert passwords.matches(passwords.hashed("lone \ud800 surrogate"), "lone \ud800 surrogate")


def test_an_unknown_name_costs_as_much_as_a_wrong_password(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    spent: list[Any] = []

    class Counting(PasswordHasher):
        def verify(self, hash: str | bytes, password: str | bytes) -> Any:
            spent.append(extract_parameters(str(hash)))
            return super().verify(hash, password)

    monkeypatch.setattr(passwords, "_HASHER", Counting(time_cost=1, memory_cost=64, parallelism=1))
    passwords._nobodys.cache_clear()
    hall.accounts.create("Ada", "admin", password=RIGHT, by="prefloop")
    hall.accounts.create("bob", "labeler", by="Ada")
    for name in ("Ada", "bob", "nobody"):
        hall.accounts.check_password(name, WRONG, name)
    assert len(spent) == 3 and spent[0] == spent[1] == spent[2]


def test_a_hash_with_older_settings_is_made_anew_at_the_next_login(hall: Hall) -> None:
    hall.accounts.create("Ada", "admin", password=RIGHT, by="prefloop")
    weak = PasswordHasher(time_cost=1, memory_cost=32, parallelism=1).hash(RIGHT)
    with db.transaction(hall.engine, write=True) as connection:
        connection.execute(tables.accounts.update().values(password=weak))
    assert hall.accounts.check_password("Ada", RIGHT, "1.2.3.4")
    assert weak not in hall.text()
    assert hall.accounts.check_password("Ada", RIGHT, "1.2.3.4")


def test_each_failure_beyond_the_first_five_doubles_the_wait(hall: Hall) -> None:
    waits = []
    for _ in range(16):
        wait = hall.wait("ada", "1.2.3.4")
        waits.append(round(wait))
        if wait:
            assert round(hall.wait("ada", "1.2.3.4")) == round(wait)  # asking again costs nothing
            hall.clock.now += wait
            assert hall.wait("ada", "1.2.3.4") <= 0
    assert waits == [0, 0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]


def test_an_address_that_tries_many_names_waits_too(hall: Hall) -> None:
    waits = [round(hall.wait(f"name{number}", "1.2.3.4")) for number in range(12)]
    assert waits == [0] * 10 + [1, 1]


def test_a_known_user_gets_in_at_once_however_hard_others_try(hall: Hall) -> None:
    hall.accounts.create("Ada", "admin", password=RIGHT, by="prefloop")
    for number in range(200):
        hall.wait("Ada", f"10.0.{number % 20}.1")
    with pytest.raises(TooManyTriesError):
        hall.accounts.check_password("Ada", RIGHT, "10.0.3.1")
    assert hall.accounts.check_password("Ada", RIGHT, "192.0.2.7")


def test_failures_are_forgotten_after_an_hour_without_any(hall: Hall) -> None:
    for _ in range(12):
        hall.wait("ada", "1.2.3.4")
    hall.clock.now += HOUR - 10
    assert hall.wait("ada", "1.2.3.4") <= 0  # its wait was over: one more failure
    assert hall.wait("ada", "1.2.3.4") > 0
    hall.clock.now += HOUR + 1
    assert [hall.wait("ada", "1.2.3.4") for _ in range(5)] == [0.0] * 5
    hall.clock.now += HOUR + 1
    hall.wait("bob", "5.6.7.8")
    assert hall.count(tables.attempts) == 2


def test_a_clock_that_was_set_back_asks_for_no_more_than_the_longest_wait(hall: Hall) -> None:
    for _ in range(40):
        hall.wait("ada", "1.2.3.4")
        hall.clock.now += 400
    hall.clock.now -= DAY
    assert hall.wait("ada", "1.2.3.4") == backoff.LONGEST


def test_the_right_password_ends_the_accounts_wait_but_buys_no_guesses_at_another(hall: Hall) -> None:
    hall.accounts.create("Ada", "admin", password=RIGHT, by="prefloop")
    for number in range(30):
        hall.wait("Ada", f"10.0.0.{number}")
    assert hall.wait("Ada", "10.0.0.1") > 0
    assert hall.accounts.check_password("Ada", RIGHT, "192.0.2.7")
    assert hall.wait("Ada", "10.0.0.1") <= 0
    hall.accounts.create("mallory", "labeler", password=RIGHT, by="Ada")
    guesses = 0
    for number in range(30):
        guesses += hall.wait(f"victim{number}", "6.6.6.6") <= 0
        try:
            hall.accounts.check_password("mallory", RIGHT, "6.6.6.6")
        except TooManyTriesError:
            break
    assert guesses == backoff.FREE["address"]


def test_tries_at_once_do_not_slip_through_together(hall: Hall) -> None:
    hall.accounts.create("Ada", "admin", password=RIGHT, by="prefloop")
    results = at_once(8, lambda _: hall.accounts.check_password("Ada", WRONG, "1.2.3.4"))
    assert results.count(None) == backoff.FREE["account"]
    assert sum(isinstance(result, TooManyTriesError) for result in results) == 8 - backoff.FREE["account"]


def test_who_comes_when_too_many_are_being_checked_is_sent_away_uncounted(hall: Hall) -> None:
    hall.accounts.create("Ada", "admin", password=RIGHT, by="prefloop")
    with contextlib.ExitStack() as others:
        for _ in range(8):
            others.enter_context(passwords.queue())
        with pytest.raises(passwords.BusyError):
            hall.accounts.check_password("Ada", RIGHT, "1.2.3.4")
        assert hall.count(tables.attempts) == 0
    assert hall.accounts.check_password("Ada", RIGHT, "1.2.3.4")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:2", True),  # one /64
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:1.2.3.4", "1.2.3.4", True),
        ("1.2.3.4", "1.2.3.5", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("", "", True),
    ],
)
def test_what_counts_as_one_address(one: str, other: str, same: bool) -> None:
    assert (backoff._address(one) == backoff._address(other)) is same


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 400)), max_size=40))
def test_no_order_of_failures_makes_a_clean_address_wait(failures: list[tuple[int, float]]) -> None:
    engine, now = db.create_engine("sqlite://"), 1e6
    tables.attempts.create(engine)
    with engine.begin() as connection:
        for address, later in failures:
            now += later
            backoff.charge(connection, "ada", f"10.0.0.{address}", now)
        assert backoff.charge(connection, "ada", "192.0.2.7", now) == 0
    engine.dispose()


def test_a_session_is_known_by_the_hash_of_its_token(hall: Hall) -> None:
    token = hall.sessions.begin(hall.admin())
    found = hall.sessions.find(token)
    assert found is not None and found.account.name == "Ada"
    assert token not in hall.text() and token != found.id and token != found.csrf
    assert hall.sessions.find(found.id) is None and hall.sessions.find("") is None
    hall.sessions.end(found.id)
    assert hall.sessions.find(token) is None


@pytest.mark.parametrize("role", ["labeler", "reviewer", "admin"])
def test_a_session_ends_when_idle_and_in_any_case(hall: Hall, role: str) -> None:
    hall.admin()
    hall.accounts.create("bob", role, by="Ada")
    idle, longest = sessions.IDLE[role], sessions.LONGEST[role]
    token = hall.sessions.begin("bob")
    hall.clock.now += idle - 1
    assert hall.sessions.find(token)
    hall.clock.now += idle - 1
    assert hall.sessions.find(token)
    hall.clock.now += idle + 1
    assert hall.sessions.find(token) is None
    token, begun = hall.sessions.begin("bob"), hall.clock.now
    while hall.clock.now + idle / 2 < begun + longest:
        hall.clock.now += idle / 2
        assert hall.sessions.find(token)
    hall.clock.now = begun + longest + 1
    assert hall.sessions.find(token) is None and hall.sessions.of("bob") == []
    hall.sessions.begin("Ada")
    assert hall.count(tables.sessions) == 1  # what has ended is deleted


def test_a_login_ends_the_session_that_the_browser_had(hall: Hall) -> None:
    first = hall.sessions.begin(hall.admin())
    before = hall.sessions.find(first)
    assert before is not None
    second = hall.sessions.begin("Ada", instead_of=before.id)
    after = hall.sessions.find(second)
    assert hall.sessions.find(first) is None
    assert after is not None and (after.id, after.csrf) != (before.id, before.csrf)


def test_password_role_and_pause_end_sessions(hall: Hall) -> None:
    hall.admin()
    hall.accounts.create("bob", "admin", password=RIGHT, by="Ada")
    for change in (
        lambda: hall.accounts.set_password("BOB", WRONG, by="bob"),
        lambda: hall.accounts.set_role("BOB", "reviewer", by="Ada"),
        lambda: hall.accounts.pause("BOB", True, by="Ada"),
        lambda: hall.accounts.shut_out("BOB", by="Ada"),
        lambda: hall.sessions.end_all("bob", by="bob"),
    ):
        tokens, other = [hall.sessions.begin("bob") for _ in range(2)], hall.sessions.begin("Ada")
        change()
        assert [hall.sessions.find(token) for token in tokens] == [None, None]
        assert hall.sessions.find(other)
    assert hall.accounts.check_password("bob", WRONG, "x") is None  # he was shut out
    assert (hall.accounts.get("bob").role, hall.accounts.get("bob").paused) == ("reviewer", True)
    hall.accounts.pause("bob", False, by="Ada")
    assert hall.accounts.get("bob").may("reviewer")


def test_a_token_is_shown_once_and_replaced(hall: Hall) -> None:
    hall.admin()
    hall.accounts.create("bob", "reviewer", by="Ada")
    token = hall.accounts.new_token("BOB", by="bob")
    found = hall.accounts.by_token(token)
    assert found is not None and (found.name, found.role, found.has_token) == ("bob", "reviewer", True)
    assert token not in hall.text() and len(token) > 40
    assert hall.accounts.by_token("") is None and hall.accounts.by_token(token.lower()) is None
    second = hall.accounts.new_token("bob", by="bob")
    assert hall.accounts.by_token(token) is None and hall.accounts.by_token(second)
    hall.accounts.pause("bob", True, by="Ada")
    assert hall.accounts.by_token(second) is None
    hall.accounts.pause("bob", False, by="Ada")
    hall.accounts.set_role("bob", "admin", by="Ada")
    assert hall.accounts.by_token(second) is None  # a token is not promoted along
    third = hall.accounts.new_token("bob", by="bob")
    hall.accounts.drop_token("bob", by="bob")
    assert hall.accounts.by_token(third) is None and not hall.accounts.get("bob").has_token


def test_an_invitation_is_bound_to_role_and_group_and_works_once(hall: Hall) -> None:
    token = hall.invites.new("reviewer", "nurses", by=hall.admin())
    assert token not in hall.text()
    seen = [hall.invites.find(token) for _ in range(2)]  # looking uses nothing up
    assert seen[0] == seen[1] and seen[0] is not None and (seen[0].role, seen[0].group) == ("reviewer", "nurses")
    assert [invite.id for invite in hall.invites.open()] == [seen[0].id]
    for name, password, why in (("ada", None, "taken"), ("a\n", None, "name"), ("bob", "short", "10 to 256")):
        with pytest.raises(PrefloopError, match=why):
            hall.invites.redeem(token, name, password=password)
    made = hall.invites.redeem(token, "bob", password=RIGHT)
    assert (made.name, made.role, made.group, made.has_password) == ("bob", "reviewer", "nurses", True)
    with pytest.raises(MissingError):
        hall.invites.redeem(token, "carol")
    assert hall.invites.find(token) is None and hall.invites.open() == []
    assert [account.name for account in hall.accounts.all()] == ["Ada", "bob"]


def test_an_invitation_ends(hall: Hall) -> None:
    admin = hall.admin()
    late, gone = hall.invites.new("labeler", by=admin), hall.invites.new("labeler", by=admin)
    found = hall.invites.find(gone)
    assert found is not None
    hall.invites.withdraw(found.id, by=admin)
    with pytest.raises(MissingError):
        hall.invites.withdraw(found.id, by=admin)
    hall.clock.now += invites.NEW - 1
    assert hall.invites.find(late)
    hall.clock.now += 2
    for token in (late, gone, "", found.id):
        assert hall.invites.find(token) is None
        with pytest.raises(MissingError):
            hall.invites.redeem(token, "bob")
    assert hall.accounts.find("bob") is None


def test_of_many_who_use_a_link_at_once_one_gets_in(hall: Hall) -> None:
    token = hall.invites.new("labeler", by=hall.admin())
    results = at_once(6, lambda number: hall.invites.redeem(token, f"bob{number}"))
    assert sum(isinstance(result, MissingError) for result in results) == 5
    assert len(hall.accounts.all()) == 2


def test_of_many_who_want_one_name_at_once_one_gets_it(hall: Hall) -> None:
    tokens = [hall.invites.new("labeler", by=hall.admin()) for _ in range(1)]
    tokens += [hall.invites.new("labeler", by="Ada") for _ in range(5)]
    results = at_once(6, lambda number: hall.invites.redeem(tokens[number], "bob" if number % 2 else "BOB"))
    assert sum(isinstance(result, PrefloopError) for result in results) == 5
    assert len(hall.accounts.all()) == 2 and len(hall.invites.open()) == 5


def test_a_link_lets_a_known_person_in_again(hall: Hall) -> None:
    hall.admin()
    hall.accounts.create("bob", "labeler", "nurses", password=WRONG, by="Ada")
    session = hall.sessions.begin("bob")
    token = hall.invites.again("BOB", by="Ada")
    back = hall.invites.redeem(token, "somebody else")
    assert (back.name, back.group) == ("bob", "nurses") and hall.sessions.find(session)
    token = hall.invites.again("bob", by="Ada")
    hall.invites.redeem(token, password=RIGHT)
    assert hall.sessions.find(session) is None
    assert hall.accounts.check_password("bob", RIGHT, "x") and not hall.accounts.check_password("bob", WRONG, "x")
    token = hall.invites.again("bob", by="Ada")
    hall.clock.now += invites.AGAIN + 1
    with pytest.raises(MissingError):
        hall.invites.redeem(token)
    with pytest.raises(MissingError):
        hall.invites.again("nobody", by="Ada")


def test_the_start_link_makes_the_first_admin_and_lets_them_in_again(hall: Hall) -> None:
    unused, token = hall.invites.start(), hall.invites.start()
    assert hall.invites.find(unused) is None and hall.invites.open() == []
    made = hall.invites.redeem(token, "Ada")
    assert (made.name, made.role) == ("Ada", "admin")
    hall.accounts.create("bob", "admin", by="Ada")
    assert hall.invites.redeem(hall.invites.start()).name == "Ada"
    hall.accounts.pause("Ada", True, by="bob")
    assert hall.invites.redeem(hall.invites.start()).name == "bob"


def test_an_admin_is_always_left(hall: Hall) -> None:
    admin = hall.admin()
    hall.accounts.create("bob", "admin", by=admin)
    hall.accounts.pause("bob", True, by=admin)
    for change in (
        lambda: hall.accounts.set_role(admin, "labeler", by=admin),
        lambda: hall.accounts.pause(admin, True, by=admin),
    ):
        with pytest.raises(PrefloopError, match="only admin"):
            change()
    assert hall.accounts.get(admin).may("admin")
    hall.accounts.pause("bob", False, by=admin)
    hall.accounts.set_role(admin, "labeler", by=admin)
    assert not hall.accounts.get(admin).may("reviewer")


def test_no_admin_shuts_themselves_out_where_no_other_could_come_in(hall: Hall) -> None:
    hall.admin()
    hall.accounts.create("bob", "admin", by="Ada")
    hall.accounts.create("cy", "reviewer", password=RIGHT, by="Ada")
    hall.accounts.set_password("Ada", RIGHT, by="Ada")
    token = hall.sessions.begin("Ada")
    with pytest.raises(PrefloopError, match="Ada is the only admin who could come in again"):
        hall.accounts.shut_out("ada", by="Ada")
    assert hall.sessions.find(token) and hall.accounts.get("Ada").has_password
    hall.accounts.shut_out("bob", by="Ada")  # by somebody who is in
    hall.invites.again("bob", by="Ada")
    hall.accounts.shut_out("Ada", by="Ada")
    assert hall.sessions.find(token) is None and not hall.accounts.get("Ada").has_password


def test_links_of_an_admin_who_lost_their_rights_end(hall: Hall) -> None:
    hall.admin()
    changes: list[Callable[[str], None]] = [
        lambda name: hall.accounts.set_role(name, "labeler", by="Ada"),
        lambda name: hall.accounts.pause(name, True, by="Ada"),
        lambda name: hall.accounts.shut_out(name, by="Ada"),
    ]
    for number, change in enumerate(changes):
        name = f"bob{number}"
        hall.accounts.create(name, "admin", by="Ada")
        token, own = hall.invites.new("admin", by=name), hall.invites.again(name, by="Ada")
        change(name)
        assert hall.invites.find(token) is None
        assert (hall.invites.find(own) is None) is (number == 2)


def test_every_act_is_logged_and_no_secret_is(hall: Hall) -> None:
    hall.admin()
    link = hall.invites.new("labeler", by="Ada")
    hall.invites.redeem(link, "bob", password=RIGHT)
    token = hall.accounts.new_token("bob", by="bob")
    hall.accounts.drop_token("bob", by="Ada")
    hall.accounts.set_password("bob", WRONG, by="bob")
    hall.accounts.set_group("bob", "nurses", by="Ada")
    hall.accounts.set_group("bob", "nurses", by="Ada")  # nothing new
    hall.accounts.set_role("bob", "reviewer", by="Ada")
    hall.accounts.pause("bob", True, by="Ada")
    hall.accounts.pause("bob", False, by="Ada")
    again = hall.invites.again("bob", by="Ada")
    hall.accounts.shut_out("bob", by="Ada")
    hall.sessions.end_all("bob", by="bob")
    hall.invites.withdraw(hall.invites.find(hall.invites.new("labeler", by="Ada")).id, by="Ada")  # type: ignore[union-attr]
    with db.transaction(hall.engine, write=False) as connection:
        rows = connection.execute(select(tables.events).order_by(tables.events.c.number)).mappings().all()
        kept = connection.execute(select(tables.accounts.c.password, tables.accounts.c.token)).all()
        audit.verify(connection)
    assert [(row["actor"], row["kind"]) for row in rows[1:]] == [
        ("prefloop", "account"),
        ("Ada", "link"),
        ("bob", "link used"),
        ("bob", "token"),
        ("Ada", "token dropped"),
        ("bob", "password"),
        ("Ada", "group"),
        ("Ada", "role"),
        ("Ada", "pause"),
        ("Ada", "unpause"),
        ("Ada", "link"),
        ("Ada", "shut out"),
        ("bob", "signed out"),
        ("Ada", "link"),
        ("Ada", "link withdrawn"),
    ]
    logged = repr([dict(row) for row in rows])
    for secret in (link, again, token, RIGHT, WRONG, "argon2", *filter(None, itertools.chain(*kept))):
        assert secret not in logged
