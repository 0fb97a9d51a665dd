"""Recipes: what is filled in from where, and that every mistake is one sentence that names it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.configs.collect import CollectConfig, LabelConfig
from prefloop.configs.evaluate import EvaluateConfig
from prefloop.configs.group import GroupConfig
from prefloop.configs.load import load_recipe, stage_config
from prefloop.configs.pipeline import STAGES, RecipeConfig
from prefloop.configs.ppo import PPOConfig
from prefloop.configs.rollout import KLConfig
from prefloop.configs.sft import SFTConfig
from prefloop.types import PrefloopError


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def ppo(recipe: RecipeConfig, **filled: object) -> PPOConfig:
    config = stage_config(recipe, "ppo", **filled)
    assert isinstance(config, PPOConfig)
    return config


def test_stages_take_what_the_recipe_shares_unless_their_section_sets_it(tmp_path: Path) -> None:
    text = """
    name = "try"
    model = "tiny"
    seed = 7
    prompts = "mine.jsonl"
    engine = {dtype = "fp32", threads = 2}
    [collect]
    prompts = "other.jsonl"
    engine = {threads = 1}
    [evaluate]
    seed = 5
    """
    recipe = load_recipe(write(tmp_path, text))
    sft, collect, evaluate = (stage_config(recipe, stage) for stage in ("sft", "collect", "evaluate"))
    assert isinstance(sft, SFTConfig) and isinstance(collect, CollectConfig) and isinstance(evaluate, EvaluateConfig)
    assert (sft.out, sft.model, sft.seed, sft.engine.threads) == ("runs/try/sft", "tiny", 7, 2)
    assert (collect.prompts, collect.seed) == ("other.jsonl", 7)
    assert (collect.engine.threads, collect.engine.dtype) == (1, "fp32")
    assert (evaluate.seed, evaluate.prompts) == (5, "mine.jsonl")


def test_predecessors_fill_only_what_the_section_leaves_empty(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, 'name = "try"\n[ppo]\npolicy = ""\nreward = "rubric"\n'))
    config = ppo(recipe, policy="runs/try/sft", reward="runs/try/reward", out="runs/try/control/ppo")
    assert (config.policy, config.reward, config.out) == ("runs/try/sft", "rubric", "runs/try/control/ppo")


def test_a_partial_table_keeps_the_defaults_of_its_stage(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, 'name = "try"'), ["ppo.optim.lr=3e-5", "sft.optim.warmup=0.2"])
    assert (ppo(recipe).optim.lr, ppo(recipe).optim.decay, ppo(recipe).optim.eps) == (3e-5, False, 1e-5)
    sft = stage_config(recipe, "sft")
    assert isinstance(sft, SFTConfig)
    assert (sft.optim.lr, sft.optim.warmup, sft.optim.decay) == (2e-5, 0.2, True)


def test_a_partial_table_keeps_what_the_method_sets(tmp_path: Path) -> None:
    def leash(method: str) -> KLConfig:
        recipe = load_recipe(write(tmp_path, 'name = "try"'), [f"group.method={method}", "group.kl.stop=20"])
        config = stage_config(recipe, "group")
        assert isinstance(config, GroupConfig) and config.kl.stop == 20
        return config.kl

    assert (leash("dapo").coef, leash("dapo").controller) == (0.0, "fixed")
    assert (leash("grpo").coef, leash("rloo").form) == (0.04, "reward")
    for own, level in (("method=rloo", "sequence"), ("ratio=geometric", "sequence"), ("method=grpo", "token")):
        recipe = load_recipe(write(tmp_path, 'name = "try"'), [f"group.{own}", "group.correction.high=3.0"])
        config = stage_config(recipe, "group")
        assert isinstance(config, GroupConfig) and config.correction
        assert (config.correction.level, config.correction.high) == (level, 3.0)


def test_overrides_are_toml_values_or_bare_strings(tmp_path: Path) -> None:
    overrides = ["name=other-seed2", "controls=true", "ppo.kl.target=4", "ppo.lora.rank=8"]
    overrides += ["ppo.missing_stop_score=none", 'label.panel=[{name = "simulated-x", accuracy = 0.9}]']
    overrides += ["ppo.reward=a=b", "collect.models=['x', 'y']"]
    recipe = load_recipe(write(tmp_path, 'name = "try"\n[ppo.kl]\ncoef = 0.5\n'), overrides)
    config, label, collect = ppo(recipe), stage_config(recipe, "label"), stage_config(recipe, "collect")
    assert isinstance(label, LabelConfig) and isinstance(collect, CollectConfig)
    assert (recipe.name, recipe.controls, config.kl.target, config.kl.coef) == ("other-seed2", True, 4.0, 0.5)
    assert config.lora is not None and (config.lora.rank, config.lora.alpha) == (8, 32.0)
    assert config.missing_stop_score is None and config.reward == "a=b" and collect.models == ("x", "y")
    assert [(a.name, a.accuracy, a.side_bias) for a in label.panel] == [("simulated-x", 0.9, 0.0)]


@given(st.sampled_from(sorted(STAGES)), st.integers(0, 2**40), st.text("abc-_ 7", min_size=1).filter(str.strip))
def test_a_loaded_stage_is_what_its_json_says(stage: str, seed: int, name: str) -> None:
    config = stage_config(RecipeConfig(name=name, seed=seed), stage)
    assert config == STAGES[stage].model_validate_json(config.model_dump_json())
    assert config.model_dump()["seed"] == seed and config.model_dump()["out"] == f"runs/{name}/{stage}"


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        ('name = "a"\nname = "b"', [], ["broken TOML", "line 2"]),
        ('name = "a"\nsede = 1', [], ["'sede'", "top level", "'seed'"]),
        ('name = "a"\n[ppo]\nstepz = 1', [], ["'stepz'", "[ppo]", "'steps'"]),
        ('name = "a"\n[ppo.kl]\ntargte = 1', [], ["'targte'", "[ppo.kl]", "'target'"]),
        ('name = "a"\n[sft.lora]\nrnak = 1', [], ["'rnak'", "[sft.lora]", "'rank'"]),
        ('name = "a"\n[[label.panel]]\nnmae = "x"', [], ["'nmae'", "[label.panel.0]", "'name'"]),
        ('name = "a"\n[[label.panel]]\nname = "simulated"', [], ["[label.panel.0]", "accuracy is missing"]),
        (
            'name = "a"\n[[label.panel]]\nname = "Ada"\naccuracy = 0.9',
            [],
            ["[label.panel.0]", "begin with 'simulated'"],
        ),
        (
            'name = "a"\n[label]\npanel = [{name = "simulated", accuracy = 0.9}, {name = "simulated", accuracy = 0.8}]',
            [],
            ["label", "two annotators named 'simulated'"],
        ),
        ('name = "a"\n[sft]\nqqqqqq = 1', [], ["'qqqqqq'", "known:", "demonstrations"]),
        ('name = "a"', ["ppo.steps=many"], ["[ppo] steps", '"many"', "integer"]),
        ('name = "a"', ["ppo.steps=2.5"], ["[ppo] steps", "2.5", "integer"]),
        ('name = "a"', ["seed=true"], ["seed = true", "integer"]),
        ('name = "a"', ["ppo.kl.coef=0"], ["[ppo.kl] coef is 0", "take 'fixed'"]),
        ('name = "a"', ["ppo.group=1", "ppo.leave_one_out=true"], ["[ppo] leave_one_out needs", "group to 2 or more"]),
        ('name = "a"', ["ppo.kl.clip=1.0", "ppo.kl.horizon=1.0"], ["[ppo.kl] horizon is not above clip", "longer"]),
        ('name = "a"', ["group.draws=2", "group.shaping.normalise=batch"], ["[group] shaping.normalise", "'running'"]),
        (
            'name = "a"\n[ppo]\nminibatches = 2\ngroup = 1\nprompts_per_step = 5\nptx = {data = "x", ratio = 0.2}',
            [],
            ["[ppo] ptx.ratio gives an update of 2 episodes no text", "0.5 or more"],
        ),
        (
            'name = "a"\n[ppo]\nearly_stop = {by = "reward"}\n[ppo.mix]\nparts = {a = "", b = "rubric"}\n'
            'weights = {a = 1.0}\nconstraint = {part = "b"}',
            [],
            ["[ppo] early_stop.by is 'reward'", "take 'watch'"],
        ),
        ('name = "a"\n[ppo.mix]\nparts = {raw = ""}\nweights = {raw = 1.0}', [], ["named 'raw'", "another name"]),
        (
            'name = "a"\ncontrols = true\nstages = ["sft", "group", "evaluate"]',
            [],
            ["no stage learns from any", "leave out controls"],
        ),
        (
            'name = "a"\ncontrols = true\nstages = ["sft", "collect", "label", "reward", "online", "evaluate"]\n'
            '[online]\npanel = [{name = "simulated", accuracy = 0.9}]',
            [],
            ["online.panel gives its own", "leave out controls"],
        ),
        (
            'name = "a"\ncontrols = true\nstages = ["sft", "collect", "label", "reward", "online", "evaluate"]\n'
            '[online]\njudges = [{name = "judge-a", model = "tiny"}]',
            [],
            ["online.judges gives its own", "leave out controls"],
        ),
        ('name = "a"', ["sft.optim.betas=[1.0,0.9]"], ["[sft.optim.betas] 0", "1.0", "less than 1"]),
        ('name = "a"', ["ppo.kl.coef=-1"], ["[ppo.kl] coef", "-1", "greater than or equal to 0"]),
        ('name = "a"', ["ppo.kl=3"], ["[ppo] kl", "3"]),
        ('name = "a"', ["ppo=3"], ["ppo = 3"]),
        ('name = "a"', ["ppo.kl.controller=adaptiv"], ["controller", '"adaptiv"', "'adaptive'"]),
        ('name = "a"', ["ppo.optim.lr=nan"], ["[ppo.optim] lr", "finite"]),
        ('name = "a"', ["stages=['sft', 'pop']"], ["stages", "'pop'", "'ppo'"]),
        ('name = "a"', ["sft.out=here"], ["[sft] out", "name"]),
        ('name = "a"', ["seed"], ["--set seed", "key=value"]),
        ('name = "a"', ["=3"], ["--set =3", "key=value"]),
        ("", [], ["name is missing"]),
        ('name = "/data/exp"', [], ['name = "/data/exp" is refused', "runs/NAME"]),
        ('name = "a/../../b"', [], ["'..'"]),
        ('name = ""', [], ["give a name"]),
    ],
)
def test_a_mistake_is_one_sentence_that_names_it(
    tmp_path: Path, text: str, overrides: list[str], words: list[str]
) -> None:
    with pytest.raises(PrefloopError) as caught:
        load_recipe(write(tmp_path, text), overrides)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    for word in words:
        assert word in message


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(PrefloopError, match=f"{path}: cannot read"):
            load_recipe(path)
    path = tmp_path / "recipe.toml"
    path.write_bytes(b"\xef\xbb\xbfname = 'a'")  # as Windows editors save it
    assert load_recipe(path).name == "a"
    path.write_bytes(b"name = '\xff'")
    with pytest.raises(PrefloopError, match="UTF-8"):
        load_recipe(path)
