"""Every recipe is one that its stages take."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefloop.configs.load import load_recipe, stage_config
from prefloop.configs.ppo import PPOConfig

RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_a_recipe_is_named_after_its_file_and_its_stages_take_it(path: Path) -> None:
    recipe = load_recipe(path, [])
    assert recipe.name == path.stem
    assert [stage_config(recipe, stage).model_dump() for stage in recipe.stages]


def test_the_recipes_of_systems_hold_what_tells_them_apart() -> None:
    found: dict[str, PPOConfig] = {}
    for name in ("ziegler2019", "stiennon2020", "instructgpt"):
        config = stage_config(load_recipe(RECIPES / f"{name}.toml", []), "ppo")
        assert isinstance(config, PPOConfig)
        found[name] = config
    ziegler, stiennon, instruct = found.values()
    assert ziegler.kl.controller == "adaptive" and ziegler.kl.target == 6 and ziegler.whiten_rewards
    assert ziegler.optim.eps_hat and ziegler.critic is None and ziegler.temperature == 0.7
    assert stiennon.kl.controller == "fixed" and stiennon.kl.coef == 0.05 and stiennon.critic
    assert not stiennon.whiten_rewards and stiennon.epochs == ziegler.epochs == 4
    assert instruct.ptx and instruct.ptx.coef == 1.0 and instruct.ema == 0.95 and instruct.epochs == 1
    assert instruct.kl.coef == 0.02 and instruct.critic and not instruct.optim.decay
