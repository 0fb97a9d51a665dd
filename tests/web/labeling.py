"""A campaign with labelers, its pages as a test reads and sends them, and what must never be in one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

from prefloop.configs.campaign import CampaignConfig
from prefloop.store.campaigns import Campaign, Item
from prefloop.types import Comparison, Completion, Judgment, Message, Prompt, Sampling
from prefloop.web.limits import Limits
from prefloop.web.workspace import Workspace
from tests.web.campaigns import rows
from tests.web.serving import Server, Visitor, running

RUN = "runs/zebra-run-7/label"
PLANTED = ("zebra", "mammoth-13b", "ckpt-4711", "cmp-", "cpl-", "prm-", "987654321", "0.4242", "slicename", "mixname")
"""Parts of what a labeler must not read: run, model, checkpoint, ids, seed, temperature, slice, kind of prompt."""


def comparison(name: str, *texts: str, prompt: Sequence[tuple[str, str]] = ()) -> Comparison:
    messages = prompt or [("user", f"Question {name}?")]
    asked = Prompt(
        id=f"prm-{name}",
        messages=tuple(Message(role=role, content=content) for role, content in messages),
        slice="slicename",
    )
    items = tuple(
        Completion(
            id=f"cpl-{name}-{i}",
            prompt_id=asked.id,
            segments=(),
            text=text,
            finish_reason="stop",
            sampling=Sampling(temperature=0.4242),
            seed=987654321,
            checkpoint="runs/zebra-run-7/mammoth-13b/ckpt-4711",
        )
        for i, text in enumerate(texts or ("first", "second"))
    )
    return Comparison(id=f"cmp-{name}", prompt=asked, items=items)


def many(count: int, size: int = 2) -> list[Comparison]:
    return [comparison(str(n), *(f"answer {i} of {n}" for i in range(size))) for n in range(count)]


@dataclass
class Labeling:
    """A workspace with one campaign, and what a test asks of it."""

    workspace: Workspace

    @property
    def campaign(self) -> Campaign:
        return self.workspace.campaigns.by_run(RUN)

    @property
    def home(self) -> str:
        return f"/c/{self.campaign.id}"

    def judgments(self) -> dict[str, Judgment]:
        """What stands, by the comparison's id."""
        return {judgment.comparison_id: judgment for judgment in self.workspace.store.judgments(RUN)}

    def rows(self, name: str) -> list[Any]:
        return rows(self.workspace, name)

    def task(self, address: str) -> Any:
        """The row of the task at an address."""
        return next(row for row in self.rows("tasks") if row["id"] == address.split("/")[2].split("?")[0])

    def pass_time(self, seconds: float) -> None:
        self.workspace.clock._start += seconds


@dataclass
class Served(Labeling):
    """The same behind a server."""

    server: Server

    def client(self, name: str = "ada") -> Client:
        return Client(self.server.visitor("labeler", name), self)


@dataclass
class Client:
    """A browser without scripts: it sends forms as they stand, but for what a test fills in."""

    http: Visitor
    here: Labeling

    def get(self, address: str) -> Page:
        return Page.of(self.http.get(address))

    def post(self, address: str, fields: dict[str, Any], **named: Any) -> Any:
        return self.http.post(address, data=fields, **named)

    def csrf(self) -> str:
        return self.http.csrf

    def next(self) -> Page:
        """Press Start or Continue."""
        reply = self.post(f"{self.here.home}/next", {"csrf": self.csrf()})
        assert reply.status_code == 303
        return self.get(reply.headers["location"])

    def submit(self, page: Page, changes: dict[str, Any] | None = None, **named: Any) -> Any:
        """Send the page's form with `changes`; None leaves a field out."""
        fields = {**page.form, **(changes or {})}
        given = {name: value for name, value in fields.items() if value is not None}
        return self.post(f"/t/{page.task}/submit", given, **named)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.fields: list[tuple[str, str, str]] = []  # form, name, value
        self.texts: list[str] = []
        self.said: list[str] = []
        self.form, self.disabled = "", False
        self.area: tuple[str, str] | None = None
        self.select = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "form":
            self.form = given.get("action", "")
        if tag == "fieldset" and "disabled" in given:
            self.disabled = True
        if tag == "article" and "data-text" in given:
            self.texts.append(given["data-text"])
        kind = given.get("type", "text")
        if tag == "input" and "name" in given and (kind not in ("radio", "checkbox") or "checked" in given):
            self._add(given["name"], given.get("value", "on"))
        elif tag == "textarea":
            self.area = (given["name"], "")
        elif tag == "select":
            self.select = given["name"]
        elif tag == "option" and "selected" in given:
            self._add(self.select, given["value"])

    def handle_endtag(self, tag: str) -> None:
        if tag == "textarea" and self.area:
            name, value = self.area
            self._add(name, value.removeprefix("\n"))
            self.area = None
        if tag == "form":
            self.form = ""

    def handle_data(self, data: str) -> None:
        if self.area:
            self.area = (self.area[0], self.area[1] + data)
        elif data.strip():
            self.said.append(" ".join(data.split()))

    def _add(self, name: str, value: str) -> None:
        if not self.disabled:
            self.fields.append((self.form, name, value))


@dataclass
class Page:
    """A response: its status, its words, the answers' texts in their order, and its forms' fields as they stand."""

    status: int
    body: str
    headers: Any
    address: str
    texts: list[str] = field(default_factory=list)
    said: str = ""
    fields: list[tuple[str, str, str]] = field(default_factory=list)

    @classmethod
    def of(cls, reply: Any) -> Page:
        reader = _Reader()
        reader.feed(reply.text)
        said = " ".join(reader.said)
        return cls(reply.status_code, reply.text, reply.headers, reply.url.path, reader.texts, said, reader.fields)

    @property
    def task(self) -> str:
        return self.address.split("/")[2]

    @property
    def form(self) -> dict[str, Any]:
        """The fields of the answer, lists where a name comes twice."""
        made: dict[str, Any] = {}
        for form, name, value in self.fields:
            if form == f"/t/{self.task}/submit":
                made[name] = [*made[name], value] if isinstance(made.get(name), list) else value
                if name in ("flag", "confirm") and not isinstance(made[name], list):
                    made[name] = [value]
        return made

    def values(self, name: str) -> list[str]:
        return [value for _, given, value in self.fields if given == name]


def make_labeling(
    workspace: Workspace, config: CampaignConfig, made: Sequence[Comparison], items: Sequence[Item] | None = None
) -> Labeling:
    """Put a campaign of these comparisons up in a fresh workspace, the first ones first."""
    workspace.store.add_comparisons(RUN, made)
    workspace.campaigns.create(RUN, config, by="prefloop")
    given = items or [Item(comparison_id=c.id, mix="mixname", priority=-n) for n, c in enumerate(made)]
    workspace.campaigns.add_items(RUN, given, by="prefloop")
    return Labeling(workspace)


@contextmanager
def served(workspace: Workspace, *scene: Any) -> Iterator[Served]:
    """The same behind a server that bears any number of requests."""
    here = make_labeling(workspace, *scene)
    with running(workspace, Limits(session_rate=(1e6, 1e6))) as server:
        yield Served(here.workspace, server)
