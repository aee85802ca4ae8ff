"""Every schedule by its name: it warms up as it says, a run logs its rates, and wrong arguments are refused."""

import json
from typing import get_args

import pytest

from tests.trainer import warm
from tests.trainer.test_lora_variants import LR, job
from trainer.config.sections import Optimizer, Schedule
from trainer.errors import ConfigError
from trainer.training.arguments import check_schedule

ARGS = {"cosine_with_min_lr": {"min_lr_rate": 0.1}, "warmup_stable_decay": {"num_decay_steps": 2}}
STEPS = 6


@pytest.mark.parametrize(("schedule", "stage"), [
    *((schedule, None) for schedule in get_args(Schedule)), ("constant", 2), ("cosine_with_min_lr", 2)])
def test_the_rate_climbs_in_the_steps_that_warm_up_and_never_passes_its_peak(tiny_base, tmp_path, schedule, stage):
    raw = job(tmp_path, tiny_base, steps=STEPS, stage=stage)
    raw["optimizer"] |= {"schedule": schedule, "schedule_args": ARGS.get(schedule, {}), "warmup_ratio": 0.5}
    raw["runtime"] |= {"save_every": 100, "sample_prompts": []}
    warm.trained(tmp_path, raw)
    rates = [json.loads(line)["lr"] for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert len(rates) == STEPS
    assert rates[0] < rates[1] < rates[2] <= max(rates) == pytest.approx(LR)
    if schedule == "constant":
        assert rates[3:] == [pytest.approx(LR)] * 3


@pytest.mark.parametrize(("schedule", "args", "why"), [
    ("cosine", {"power": 2.0}, "got power for the schedule cosine"),
    ("cosine_with_min_lr", {}, "got none for the schedule cosine_with_min_lr"),
    ("warmup_stable_decay", {}, "got none for the schedule warmup_stable_decay")])
def test_arguments_that_a_schedule_does_not_take_or_lacks_are_refused(schedule, args, why):
    with pytest.raises(ConfigError, match=why):
        check_schedule(Optimizer(schedule=schedule, schedule_args=args), 1, STEPS)
