"""What a drill concludes from a job's log: lines in, findings out."""

import pytest

from launcher.kinds.train.drill_check import Expected, check_record, steps_lost
from launcher.kinds.train.drill_record import read_record, spans

WORLD, ROWS, STEPS, EVERY = 2, 24, 12, 4


def rows_of(step, rank):
    """Each step takes the next four of the 24 rows: two epochs in twelve steps."""
    first = (step - 1) * 2 * WORLD % ROWS + 2 * rank
    return f"{first} {first + 1}"


def told(first, last, rank, *, local=False):
    mark = f"[rank {rank}] " if local and rank else ""
    lines = []
    for step in range(first, last + 1):
        lines.append(f"{mark}rows {step}  rank {rank}  {rows_of(step, rank)}")
        if rank == 0 and step > first and step % EVERY == 1:  # a save is complete some time after its step
            lines.append(f"saved outputs/job/checkpoint-{step - 1} (step {step - 1})")
    return lines


def head(resumed=None):
    lines = ["data: 40 rows read, 30 conversations kept, 900 tokens, 50% of them trained",
             f"data: packed into {ROWS} rows of 128 tokens, 93.0% full, no sample cut"]
    return ([f"resuming from outputs/job/checkpoint-{resumed} (step {resumed})"] if resumed else []) + lines


def log(*starts):
    """Each start: (went on after, last step of rank 0, last step of rank 1)."""
    lines = []
    for start, *lasts in starts:
        lines += head(start)
        for rank, last in enumerate(lasts):
            lines += told(start + 1, last, rank)
    return lines


PREEMPTED = log((0, 6, 6), (6, 12, 12))
KILLED = log((0, 7, 6), (4, 12, 12))


def failed(lines, *, saves=False, state="succeeded", restarts=1):
    """Names of the checks that are not met, with what was seen."""
    expected = Expected(WORLD, STEPS, EVERY, restarts, saves)
    return {check.name: check.seen for check in check_record(read_record(lines), expected, state=state) if not check.ok}


def test_a_preemption_that_saved_at_the_stop_passes():
    assert failed(PREEMPTED, saves=True, restarts=0) == {}


def test_a_killed_rank_that_goes_back_to_the_last_save_passes():
    assert failed(KILLED) == {}
    assert steps_lost(read_record(KILLED)) == 3


def test_lines_of_other_local_ranks_carry_a_mark():
    marked = [f"[rank 1] {line}" if "  rank 1  " in line else line for line in KILLED]
    assert failed(marked) == {}


def test_a_preemption_may_lose_no_step():
    assert failed(KILLED, saves=True, restarts=0) == {
        "resumed": "stopped after step 7, saved at step 7, went on from step 4"}


def test_a_kill_may_not_lose_more_than_the_last_save():
    lines = log((0, 10, 10), (4, 12, 12))
    assert failed(lines) == {"resumed": "stopped after step 10, saved at step 8, went on from step 4"}


def test_a_save_counts_once_the_next_has_begun_if_not_before():
    silent = [line for line in log((0, 7, 7), (0, 12, 12)) if not line.startswith("saved ")]
    assert failed(silent) == {}
    silent = [line for line in log((0, 9, 9), (0, 12, 12)) if not line.startswith("saved ")]
    assert failed(silent) == {"resumed": "stopped after step 9, saved at step 4, went on from nothing"}


def test_at_a_save_either_checkpoint_will_do():
    assert failed(log((0, 8, 8), (8, 12, 12))) == failed(log((0, 8, 8), (4, 12, 12))) == {}


def test_starting_over_loses_everything():
    lines = log((0, 7, 7), (0, 12, 12))
    assert failed(lines) == {"resumed": "stopped after step 7, saved at step 4, went on from nothing"}


def test_a_job_that_was_never_started_again_proves_nothing():
    assert "resumed" in failed(log((0, 12, 12)))


def test_a_checkpoint_of_steps_that_nobody_trained():
    assert "went on from step 9" in failed(log((0, 7, 7), (9, 12, 12)))["resumed"]


def test_a_step_left_out_after_the_checkpoint():
    lines = [line for line in KILLED if not line.startswith("rows 5 ")]
    again = lines + told(5, 5, 0)  # not where it belongs
    assert failed(lines)["steps"].startswith("step 6 came after step 4")
    assert "steps" in failed(again)


def test_a_step_of_the_lineage_trained_twice():
    place = len(KILLED) - KILLED[::-1].index(f"rows 5  rank 0  {rows_of(5, 0)}") - 1  # the first after the checkpoint
    found = failed([*KILLED[:place], *told(4, 4, 0), *KILLED[place:]])
    assert found["steps"] == "trained twice: step 4"
    assert "went on from step 3" in found["resumed"]


def test_a_run_that_ends_early_or_badly():
    assert failed(log((0, 7, 7), (4, 11, 11)))["ended"] == "succeeded after step 11 of 12"
    assert set(failed(KILLED, state="failed")) == {"ended", "restarts spent"}


def test_other_rows_after_the_restart():
    lines = [*KILLED]
    place = len(lines) - 1 - lines[::-1].index(f"rows 6  rank 1  {rows_of(6, 1)}")
    lines[place] = "rows 6  rank 1  0 1"
    found = failed(lines)
    assert found["same rows again"] == f"rank 1: step 6 first had rows {rows_of(6, 1)}, then 0 1"
    assert "rows once" in found


def test_a_row_twice_in_an_epoch():
    lines = [line.replace("rows 11  rank 1  18 19", "rows 11  rank 1  0 19") for line in KILLED]
    assert failed(lines) == {"rows once": "step 11: row 0 for the second time in this epoch"}


def test_a_row_on_two_ranks_in_one_step():
    lines = [line.replace("rows 11  rank 1  18 19", "rows 11  rank 1  16 19") for line in KILLED]
    assert "rows once" in failed(lines)


def test_an_epoch_may_end_within_a_step():
    """22 rows: the sixth step has 20 and 21, and 0 and 1 of the next epoch, which has them once."""
    lines = [line.replace(f"into {ROWS} rows", "into 22 rows").replace("rank 1  22 23", "rank 1  0 1")
             for line in KILLED]
    assert failed(lines)["rows once"].startswith("step 7: row 0-1 for the second time in this epoch")
    assert failed([line.replace("rows 7  rank 0  0 1", "rows 7  rank 0  20 21") for line in lines]) == {}


def test_without_packing_every_conversation_is_a_row():
    assert read_record(line for line in head() if "packed" not in line).num_rows == 30


def test_a_log_without_the_number_of_rows():
    assert failed([line for line in KILLED if "data:" not in line]) == {
        "rows once": "the log does not say how many rows there are"}


def test_a_rank_that_is_silent():
    assert failed([line for line in KILLED if "  rank 1  " not in line])["ranks"] == "rank 1: no step 1-12"


def test_a_rank_that_did_not_go_back_with_the_others():
    """Its optimizer would have seen other steps than rank 0's."""
    lines = log((0, 8, 8), (4, 12, 8)) + told(9, 12, 1)
    once = [line for number, line in enumerate(lines) if "  rank 1  " not in line or line not in lines[:number]]
    assert failed(once)["ranks"] == "rank 1: step 5-7 not as often as on rank 0"


def test_a_rank_that_jumps():
    lines = [line for line in KILLED if not line.startswith("rows 10  rank 1")]
    assert failed(lines)["ranks"] == "rank 1: step 11 came after step 9; rank 1: no step 10"


def test_a_second_start_that_was_lost_before_its_first_step():
    assert failed([*log((0, 7, 7)), *head(4), *log((4, 12, 12))]) == {}


@pytest.mark.parametrize(("numbers", "text"), [([], ""), ([3], "3"), ([4, 1, 2, 2, 7], "1-2, 4, 7")])
def test_spans(numbers, text):
    assert spans(numbers) == text
