"""Files into the store and into a campaign: our own exports, and the layouts of others (see `data.layouts`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import bindparam, update

from prefloop.data import tables as files
from prefloop.data.arrow import PUBLISHED
from prefloop.data.found import Found, in_order
from prefloop.data.layouts import read_gold, read_row
from prefloop.data.pairing import comparison_id, pair_completions, rank_completions
from prefloop.data.rows import read_rows
from prefloop.store import db, tables
from prefloop.store.campaigns import Campaigns, Item, MissingError, why_held
from prefloop.store.exchange import Labeled, check_manifest, people
from prefloop.store.labels import MOST_ANSWERS, Label, Store, check_label, storable
from prefloop.types import Comparison, Completion, Json, PrefloopError, Prompt, from_json

_MANY_COMPARISONS, _MANY_LABELS, _MANY_CHARACTERS = 1000, 5000, 2**24


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What an import added: comparisons and labels to the store, items to the campaign. known_labels: the annotator had
    judged that comparison already. held: comparisons to be held back, because an answer names a model. alone: prompts
    whose answers had no other to be compared with. skipped: rows left out, and why the first was."""

    comparisons: int = 0
    labels: int = 0
    known_labels: int = 0
    items: int = 0
    held: int = 0
    alone: int = 0
    skipped: int = 0
    first_skipped: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    comparison: Comparison
    labels: Sequence[Label] = ()
    mix: str = ""
    priority: float = 0.0
    gold: Mapping[str, Json] | None = None
    held: str = ""


def import_items(
    store: Store,
    campaigns: Campaigns | None,
    run: str,
    path: str | Path,
    *,
    by: str = "prefloop",
    pairs: int = 1,
    ways: int = 2,
    seed: int = 0,
    skip_bad: bool = False,
    key: bytes | None = None,
) -> Imported:
    """Add a file's comparisons to a run, with the judgments that it has of them, and where the run has a campaign put
    them up for labels.

    Answers without a comparison are paired, `pairs` a prompt, or compared `ways` (3 and more) at a time. Of a
    comparison that comes twice, either way round, the first row decides but for its labels. Rows are added by and by,
    each with all that belongs to it; an import that was cut off is done again and gives the same. With `skip_bad` rows
    that do not fit are left out and counted, else the first raises PrefloopError with file:place. An export is checked
    against its manifest where one stands beside it, and pseudonyms that `key` made are read as the names that they
    stand for. The log names `by`."""
    manifest = {} if str(path).startswith(PUBLISHED) else check_manifest(Path(path))
    named = people(store, key, manifest)
    batch, pool = _Batch(store, campaigns, run, by), _Pool()
    try:
        for number, row in read_rows(path):
            try:
                found = _read(row, f"{path}:{number}", named)
                if isinstance(found, _Entry):
                    batch.add(found, f"{path}:{number}")
                else:
                    pool.add(found, f"{path}:{number}")
            except PrefloopError as error:
                if not skip_bad:
                    raise
                batch.skip(str(error))
            batch.flush_if_full()
        for entry in pool.compared(pairs, ways, seed, alone_is_fine=bool(batch.seen)):
            batch.add(entry, str(path))
            batch.flush_if_full()
        batch.flush()
    except RecursionError as error:
        raise PrefloopError(f"{path}: a row is nested too deeply; flatten or remove it.") from error
    return dataclasses.replace(batch.result, alone=pool.alone)


def _read(row: dict[str, Json], where: str, named: Callable[[str], str]) -> _Entry | Found:
    if {"comparison", "labels"} <= row.keys():
        return _own(row, where, named)
    found = read_row(row, where)
    _check_fit(found.prompt, len(found.items) if found.whole else 0, where)
    return _entry(found) if found.whole else found


def _check_fit(prompt: Prompt, answers: int, where: str) -> None:
    """Raises PrefloopError for what the pages cannot show or ask."""
    if not prompt.messages:
        raise PrefloopError(f"{where}: the prompt has no message; give it one, or remove this row.")
    if answers > MOST_ANSWERS:
        raise PrefloopError(f"{where}: {answers} answers; a comparison has at most {MOST_ANSWERS}, leave some out.")


def _own(row: dict[str, Json], where: str, named: Callable[[str], str]) -> _Entry:
    made = from_json(Labeled, files.unpacked(Labeled, row, where), where)
    comparison = made.comparison
    if len(comparison.items) < 2:
        raise PrefloopError(f"{where}: {len(comparison.items)} answer; a comparison needs two or more.")
    _check_fit(comparison.prompt, len(comparison.items), where)
    gold = None if made.gold is None else read_gold(made.gold, len(comparison.items), where)
    labels = []
    try:
        storable(made.mix, "Mix")
        storable(made.held, "Held")
        for label in made.labels:
            if label.judgment.comparison_id != comparison.id:
                raise PrefloopError(f"a label is of comparison {label.judgment.comparison_id!r:.80}, not of this one.")
            check_label(label, len(comparison.items), "of this file")
            judgment = dataclasses.replace(label.judgment, annotator=named(label.judgment.annotator))
            labels.append(dataclasses.replace(label, judgment=judgment))
    except PrefloopError as error:
        raise PrefloopError(f"{where}: {error}") from error
    return _Entry(comparison=comparison, labels=labels, mix=made.mix, priority=made.priority, gold=gold, held=made.held)


def _entry(found: Found) -> _Entry:
    comparison = Comparison(id=comparison_id(found.items), prompt=found.prompt, items=found.items)
    labels = [Label(judgment=judgment) for judgment in found.judgments]
    return _Entry(comparison=comparison, labels=labels, mix=found.mix, priority=found.priority, gold=found.gold)


class _Pool:
    """Answers on their own, until all of a file are known."""

    def __init__(self) -> None:
        self._prompts: dict[str, Found] = {}
        self._answers: dict[str, list[Completion]] = {}
        self.alone = 0

    def add(self, found: Found, where: str) -> None:
        if self._prompts.setdefault(found.prompt.id, found).prompt.messages != found.prompt.messages:
            raise PrefloopError(f"{where}: id {found.prompt.id!r} was another prompt further up; rename one of them.")
        self._answers.setdefault(found.prompt.id, []).extend(found.items)

    def compared(self, pairs: int, ways: int, seed: int, *, alone_is_fine: bool) -> Iterator[_Entry]:
        prompts: list[Prompt] = [found.prompt for found in self._prompts.values()]
        self.alone = len(prompts)
        if not prompts:
            return
        try:
            if ways > 2:
                made = rank_completions(self._answers, prompts, ways=ways, seed=seed)
            else:
                made = pair_completions(self._answers, prompts, pairs=pairs, seed=seed)
        except PrefloopError:
            if not alone_is_fine:
                raise
            return
        self.alone -= len({comparison.prompt.id for comparison in made})
        for comparison in made:
            first = self._prompts[comparison.prompt.id]
            yield _entry(in_order(dataclasses.replace(first, items=comparison.items, whole=True), comparison.prompt.id))


class _Batch:
    """Entries that go into the database together."""

    def __init__(self, store: Store, campaigns: Campaigns | None, run: str, by: str) -> None:
        self._store, self._run, self._by = store, storable(run, "Run"), by
        self._campaigns = campaigns if campaigns and _has_campaign(campaigns, run) else None
        self._entries: dict[str, _Entry] = {}
        self._labels: list[Label] = []
        self._characters = 0
        self.seen = 0
        self.result = Imported()

    def skip(self, reason: str) -> None:
        result = self.result
        first = result.first_skipped or reason
        self.result = dataclasses.replace(result, skipped=result.skipped + 1, first_skipped=first)

    def add(self, entry: _Entry, where: str) -> None:
        comparison = entry.comparison
        if comparison.id not in self._entries:
            self._entries[comparison.id] = entry
            self._characters += sum(len(item.text) + 8 * len(item.tokens) for item in comparison.items)
            self._characters += sum(len(message.content) for message in comparison.prompt.messages)
        elif self._entries[comparison.id].comparison != comparison:
            raise PrefloopError(
                f"{where}: comparison {comparison.id} came before with other content; rename one of them."
            )
        self.seen += 1
        self._labels += entry.labels

    def flush_if_full(self) -> None:
        full = len(self._entries) >= _MANY_COMPARISONS or len(self._labels) >= _MANY_LABELS
        if full or self._characters >= _MANY_CHARACTERS:
            self.flush()

    def flush(self) -> None:
        entries, labels = self._entries, self._labels
        self._entries, self._labels, self._characters = {}, [], 0
        compared = self._store.add_comparisons(self._run, [entry.comparison for entry in entries.values()])
        judged = self._store.add_labels(self._run, labels, by=self._by) if labels else 0
        items, held = self._put_up(entries)
        before = self.result
        self.result = dataclasses.replace(
            before,
            comparisons=before.comparisons + compared,
            labels=before.labels + judged,
            known_labels=before.known_labels + len(labels) - judged,
            items=before.items + items,
            held=before.held + held,
        )

    def _put_up(self, entries: Mapping[str, _Entry]) -> tuple[int, int]:
        """Into the campaign; returns how many were new to it, and how many are to be held back."""
        if self._campaigns is None:
            self._note(entries)
            return 0, 0
        items = [_item(entry) for entry in entries.values()]
        added = self._campaigns.add_items(self._run, items, by=self._by)
        return added, sum(bool(item.held) for item in items)

    def _note(self, entries: Mapping[str, _Entry]) -> None:
        """Without a campaign: what a later one, or an export, can use."""
        table = tables.comparisons
        rows = [
            {"b_id": id_, "mix": e.mix, "gold": e.gold, "priority": e.priority}
            for id_, e in entries.items()
            if e.mix or e.gold or e.priority
        ]
        if rows:
            where = (table.c.run == self._run) & (table.c.id == bindparam("b_id")) & (table.c.shuffle == 0)
            with db.transaction(self._store.engine, write=True) as connection:
                connection.execute(update(table).where(where), rows)


def _item(entry: _Entry) -> Item:
    id_, held = entry.comparison.id, entry.held or why_held(entry.comparison)
    return Item(comparison_id=id_, mix=entry.mix, priority=entry.priority, gold=entry.gold, held=held)


def _has_campaign(campaigns: Campaigns, run: str) -> bool:
    try:
        campaigns.by_run(run)
    except MissingError:
        return False
    return True
