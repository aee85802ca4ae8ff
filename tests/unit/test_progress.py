"""The trainer's step line, read back."""

from launcher.logs.progress import Step, parse_step


def test_a_step_line():
    line = "step 10/250  loss 2.3456  lr 1.0e-03  tok/s 12345  mem 1.2GiB  eta 0:00:32"
    values = {"loss": "2.3456", "lr": "1.0e-03", "tok/s": "12345", "mem": "1.2GiB", "eta": "0:00:32"}
    assert parse_step(line) == Step(10, 250, values)


def test_other_lines_are_not_steps():
    for line in ("", "step", "step 1/2", "step one/2  loss 1", "a step 1/2  loss 1", "step 1/2  loss", "step 1/2 l 1"):
        assert parse_step(line) is None, line
