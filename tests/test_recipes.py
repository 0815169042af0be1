"""Every recipe of the project loads, and the recipes for real models keep the published hyper-parameters."""

from pathlib import Path

import pytest

from distill.recipe.load import load_recipe
from distill.recipe.train import DpoEntry, SftEntry

ROOT = Path(__file__).parents[1]
RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if path.parent.name != "accelerate")


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_is_valid_and_listed(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert path.name in (ROOT / "recipes" / "README.md").read_text()


def test_zephyr_keeps_the_paper() -> None:
    """2310.16944, section 4.3."""
    dsft, ddpo = load_recipe(ROOT / "recipes" / "zephyr-7b.yaml").train
    assert isinstance(dsft, SftEntry) and isinstance(ddpo, DpoEntry)
    assert (dsft.learning_rate, dsft.schedule, dsft.warmup_ratio, dsft.batch_size) == (2e-5, "cosine", 0.1, 512)
    assert (dsft.max_length, dsft.epochs) == (2048, 1)
    assert (ddpo.learning_rate, ddpo.schedule, ddpo.warmup_ratio, ddpo.batch_size) == (5e-7, "linear", 0.1, 32)
    assert (ddpo.beta, ddpo.epochs) == (0.1, 3)


def test_phi_1_keeps_the_paper() -> None:
    """2306.11644, section 2.3: 6,000 steps of 256 rows, peak 1e-4 after 50 steps, weight decay 0.01."""
    recipe = load_recipe(ROOT / "recipes" / "phi-1-code.yaml")
    (finetune,) = recipe.train
    assert isinstance(finetune, SftEntry)
    assert (finetune.max_steps, finetune.batch_size, finetune.learning_rate) == (6000, 256, 1e-4)
    assert round(finetune.warmup_ratio * 6000) == 50
    assert (finetune.weight_decay, finetune.schedule) == (0.01, "linear")
