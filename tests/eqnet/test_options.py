"""Options: names, ranges, and that none is accepted without having an effect."""

from __future__ import annotations

import dataclasses

import pytest

from eqnet.errors import InputError
from eqnet.options import TrainOptions, check, free_options, resolve_choices


def test_names_are_unique_and_replace_reaches_every_group() -> None:
    options = TrainOptions()
    names = [
        option.name
        for group in dataclasses.fields(options)
        for option in dataclasses.fields(getattr(options, group.name))
    ]
    assert len(set(names)) == len(names) == len(options.flat())
    changed = options.replace({"r_max": 4.0, "lr": 0.5, "seed": 3})
    assert (changed.model.r_max, changed.optimizer.lr, changed.run.seed) == (4.0, 0.5, 3)
    assert changed.replace({"r_max": None, "lr": 0.01, "seed": 0}) == options


def test_defaults_are_valid() -> None:
    check(TrainOptions())
    check(resolve_choices(TrainOptions()))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"r_max": 0.0}, "r_max must be greater than 0, not 0"),
        ({"lr": -1.0}, "lr must be greater than 0"),
        ({"lr": float("nan")}, "lr must be a finite number"),
        ({"batch_size": 0}, "batch_size must be greater than 0"),
        ({"rank": 0}, "rank must be greater than 0, not 0"),
        ({"rank": -2}, "rank must be greater than 0, not -2"),
        ({"max_ell": 12}, "max_ell must be at most 11"),
        ({"max_L": -1}, "max_L must not be negative"),
        ({"valid_fraction": 1.0}, "valid_fraction must be between 0 and 1"),
        ({"ema_decay": 1.0}, "ema_decay must be between 0 and 1"),
        ({"forces_weight": -1.0}, "forces_weight must not be negative"),
        ({"ema": False, "ema_decay": 0.9}, "--ema_decay has no effect without --ema"),
        ({"huber_delta": 0.1}, "--huber_delta has no effect without --loss huber"),
        ({"start_stage_two": 5}, "--start_stage_two has no effect without --stage_two"),
        ({"stage_two_lr": 0.1}, "--stage_two_lr has no effect without --stage_two"),
        ({"lr_factor": 0.5}, "--lr_factor has no effect without --scheduler plateau"),
        ({"lr_scheduler_gamma": 0.9}, "no effect without --scheduler exponential"),
        ({"scheduler": "plateau", "lr_final": 0.1}, "no effect without --scheduler cosine"),
        ({"stage_two": True, "start_stage_two": 9, "max_num_epochs": 9}, "has no effect with"),
        ({"hidden_irreps": "8x0e", "num_channels": 8}, "--num_channels has no effect with"),
        ({"num_valid": 3, "valid_fraction": 0.1}, "say the same thing twice"),
        ({"valid_file": "a", "num_valid": 3}, "say the same thing twice"),
        ({"stress_key": "a", "virials_key": "b"}, "say the same thing twice"),
        ({"energy_weight": 0.0, "forces_weight": 0.0}, "all weights of the loss are 0"),
        ({"name": "a/b"}, "name must be a plain file name"),
        ({"name": ".."}, "name must be a plain file name"),
    ],
)
def test_bad_values_are_refused(values: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check(TrainOptions().replace(values))


def test_choices_bring_their_defaults_and_only_those() -> None:
    plain = resolve_choices(TrainOptions()).flat()
    assert plain["ema_decay"] == 0.99 and plain["lr_final"] == 0.01 and plain["weight_decay"] == 0
    assert plain["valid_fraction"] == 0.1
    for name in ("valid_file", "num_valid", "split_file"):
        chosen = resolve_choices(TrainOptions().replace({name: 3 if name == "num_valid" else "a"}))
        check(chosen)
        assert chosen.data.valid_fraction is None
    for name in ("huber_delta", "lr_factor", "scheduler_patience", "stage_two_lr"):
        assert plain[name] is None
    other = {"scheduler": "plateau", "optimizer": "adamw", "stage_two": True, "loss": "huber"}
    found = resolve_choices(TrainOptions().replace({**other, "ema": False, "lr": 0.02})).flat()
    assert (found["lr_factor"], found["weight_decay"], found["stage_two_lr"]) == (0.8, 0.01, 0.002)
    assert (found["ema_decay"], found["lr_final"], found["huber_delta"]) == (None, None, 0.01)


def test_what_may_change_when_a_run_goes_on() -> None:
    constant = TrainOptions().replace({"scheduler": "constant"})
    assert "max_num_epochs" in free_options(constant)
    assert "max_num_epochs" not in free_options(TrainOptions())  # the cosine ends there
    assert "max_num_epochs" not in free_options(constant.replace({"eval_interval": 2}))
    assert "lr" not in free_options(constant)
    assert "patience" not in free_options(constant.replace({"stage_two": True}))


def test_every_option_of_a_model_can_be_set() -> None:
    from eqnet.models import MODELS

    derived = {"elements", "avg_num_neighbors"}
    known = {field.name for field in dataclasses.fields(TrainOptions().model)}
    of_models = {
        field.name for config, _ in MODELS.values() for field in dataclasses.fields(config)
    }
    assert of_models - derived == known - {"model", "preset", "method", "pair_repulsion"}


def test_presets_are_options_of_their_model_and_what_is_set_wins() -> None:
    from eqnet.model_choice import config_class_of, model_options
    from eqnet.models import MODELS

    for name in MODELS:
        for preset, values in config_class_of(name).PRESETS.items():
            options = TrainOptions().replace({"model": name, "preset": preset})
            assert model_options(options) == values
            option, _ = next(iter(values.items()))
            assert model_options(options.replace({option: 7}))[option] == 7
        assert list(config_class_of(name).PRESETS) == ["small", "medium", "large"]
    with pytest.raises(InputError, match="no --preset huge; there are small"):
        model_options(TrainOptions().replace({"preset": "huge"}))
