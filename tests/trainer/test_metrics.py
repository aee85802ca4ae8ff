from launcher.logs.progress import parse_step
from trainer.training.metrics import MetricsFile, plot_loss, step_line

ROW = {
    "epoch": 0.1249,
    "mfu": 0.4123,
    "device_used_gib": 71.26,
    "step": 10,
    "total": 250,
    "loss": 2.34567,
    "lr": 1e-3,
    "grad_norm": 0.5,
    "tokens_per_s": 12345.6,
    "memory_gib": 1.24,
    "eta_s": 3725.9,
}


def test_step_line_is_read_back_by_the_launcher():
    line = step_line(ROW)
    assert line == (
        "step 10/250  epoch 0.12  loss 2.3457  lr 1.0e-03  grad 0.50  tok/s 12346  mfu 41.2%  mem 71.3GiB  eta 1:02:05"
    )
    step = parse_step(line)
    assert (step.step, step.total) == (10, 250)
    assert step.values == {
        "epoch": "0.12",
        "loss": "2.3457",
        "lr": "1.0e-03",
        "grad": "0.50",
        "tok/s": "12346",
        "mfu": "41.2%",
        "mem": "71.3GiB",
        "eta": "1:02:05",
    }


def test_without_a_known_card_the_step_line_has_no_utilisation_and_the_memory_of_the_process():
    step = parse_step(step_line({**ROW, "mfu": None, "device_used_gib": None}))
    assert "mfu" not in step.values
    assert step.values["mem"] == "1.2GiB"


def test_metrics_survive_a_cut_last_line_and_forget_what_is_done_again(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        metrics.append({"step": step, "loss": float("nan") if step == 2 else 1.0})
    with metrics.path.open("a") as file:
        file.write('{"step": 4, "lo')
    assert metrics.read() == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": None}, {"step": 3, "loss": 1.0}]
    metrics.keep_up_to(2)
    assert [row["step"] for row in metrics.read()] == [1, 2]


def test_plot_is_a_picture(tmp_path):
    plot_loss([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 3, "loss": None}], tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
