from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from prefloop.store.exchange import export_labels, import_labels, manifest_path
from prefloop.store.labels import Store, open_store
from prefloop.types import Comparison, Completion, Judgment, Message, PrefloopError, Prompt, Sampling


def fill(store: Store) -> None:
    prompt = Prompt(id="p", messages=(Message(role="user", content="Grüße, \u2028 and 日本"),))
    for name in ("z", "a"):
        items = tuple(
            Completion(
                id=f"{name}{i}",
                prompt_id="p",
                segments=(),
                text=f"answer {i}",
                finish_reason="stop",
                sampling=Sampling(),
                seed=i,
            )
            for i in range(2)
        )
        store.add_comparisons("r", [Comparison(id=name, prompt=prompt, items=items)])
    store.add_judgments("r", [Judgment(comparison_id="z", annotator="zoe", probability=0.25)], simulated=False)
    store.add_judgments("r", [Judgment(comparison_id="z", annotator="sim", ranking=(0, 1))], simulated=True)


def test_labels_go_out_and_in_with_equal_bytes(url: str, tmp_path: Path) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    with open_store(url) as store:
        fill(store)
        manifest = export_labels(store, "r", one)
        assert manifest == {
            "comparisons": 2,
            "judgments": 2,
            "sha256": hashlib.sha256(one.read_bytes()).hexdigest(),
        }
        assert json.loads(manifest_path(one).read_text()) == manifest
        lines = [json.loads(line) for line in one.read_bytes().splitlines()]
        assert [line["comparison"]["id"] for line in lines] == ["z", "a"]
        assert [j["annotator"] for j in lines[0]["judgments"]] == ["sim", "zoe"]
        assert lines[0]["simulated"] == ["sim"]
        assert import_labels(store, "r", one) == 0
        assert import_labels(store, "copy", one) == 2
        assert import_labels(store, "copy", one) == 0
        assert export_labels(store, "copy", two) == manifest
        assert store.comparisons("copy") == store.comparisons("r")
        assert store.annotators("copy") == {"sim": True, "zoe": False}
    assert one.read_bytes() == two.read_bytes()
    with open_store(f"sqlite:///{tmp_path / 'elsewhere.db'}") as store:
        assert import_labels(store, "r", one) == 2
        assert export_labels(store, "r", two) == manifest


def test_a_changed_export_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    with open_store(f"sqlite:///{tmp_path / 'labels.db'}") as store:
        fill(store)
        export_labels(store, "r", path)
        path.write_bytes(path.read_bytes().replace(b"answer 0", b"answer 9"))
        with pytest.raises(PrefloopError, match=r"not what labels\.jsonl\.manifest\.json describes"):
            import_labels(store, "copy", path)
        assert store.comparisons("copy") == []
        manifest_path(path).write_text("[]")
        with pytest.raises(PrefloopError, match="no manifest of labels"):
            import_labels(store, "copy", path)
        with pytest.raises(PrefloopError, match="Run 'nobody' has no comparisons"):
            export_labels(store, "nobody", path)


def test_other_peoples_preferences_are_judgments_by_imported(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": "Hi", "chosen": "Hello!", "rejected": "Go away."},
        {"prompt": "Bye", "chosen": "b", "rejected": ""},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    with open_store(f"sqlite:///{tmp_path / 'labels.db'}") as store:
        assert import_labels(store, "r", path) == 2
        assert import_labels(store, "r", path) == 0
        assert [[item.text for item in c.items] for c in store.comparisons("r")] == [["Hello!", "Go away."], ["b", ""]]
        assert [(j.annotator, j.probability) for j in store.judgments("r")] == [("imported", 1.0)] * 2
        assert store.annotators("r") == {"imported": False}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"comparison": {}}', r"bad\.jsonl:1: field 'judgments' is missing"),
        ('{"comparison": {}, "judgments": [], "simulated": []}', r"bad\.jsonl:1: field 'id' of Comparison is missing"),
        ('{"chosen": "a"}', r"bad\.jsonl:1: field 'prompt' is missing"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(line)
    with open_store(f"sqlite:///{tmp_path / 'labels.db'}") as store, pytest.raises(PrefloopError, match=message):
        import_labels(store, "r", path)
