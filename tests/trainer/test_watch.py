"""What makes training slow is named, once: real code, with a clock and a machine of the test's own."""

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from trainer.node.ranks import Place
from trainer.training.callbacks import LogCallback, MetricsLog, SampleCallback, ValidationCallback
from trainer.training.divergence import Divergence
from trainer.training.forward_timer import ForwardTimes
from trainer.training.metrics import MetricsFile, StepStatistics
from trainer.training.stopwatch import Stopwatch
from trainer.training.watch import Watch, full_memory, slow_network, slow_precision, tell_of_kernels

CPU = torch.device("cpu")


class Clock:
    """A clock that stands still until the test turns it."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def turn(self, seconds):
        self.now += seconds


class Model(torch.nn.Linear):
    """One forward pass takes as long as it is told."""

    def __init__(self, clock):
        super().__init__(1, 1)
        self.clock, self.seconds = clock, 0.0

    def forward(self, inputs):
        self.clock.turn(self.seconds)
        return super().forward(inputs)


@pytest.fixture
def clock():
    return Clock()


def batches(clock, seconds):
    while True:
        clock.turn(seconds)
        yield "a batch"


def run(tmp_path, clock, flops=None):
    """The callbacks of a run whose clock the test turns: (log, statistics, state, lines told)."""
    told, statistics = [], StepStatistics(stopwatch=Stopwatch(clock))
    metrics_log = MetricsLog(Place(0, 0, 1, CPU), told.append, MetricsFile(tmp_path / "metrics.jsonl"))
    divergence = Divergence(metrics_log.place, [], tmp_path, 3)
    log = LogCallback(metrics_log, statistics, divergence, Watch(told.append), 0.1, flops)
    state = SimpleNamespace(global_step=0, max_steps=100)
    log.on_train_begin(None, state, None, model=Model(clock))
    return log, statistics, state, told


def step(log, statistics, state, clock, *, waits, computes, tokens=1000):
    """One step and its line; returns its row of metrics."""
    next(statistics.stopwatch.batches(batches(clock, waits)))
    clock.turn(computes)
    statistics.tokens += tokens
    state.global_step += 1
    log.on_log(None, state, None, logs={"loss": 1.0, "learning_rate": 0.1, "grad_norm": 2.0})
    return log.metrics_log.metrics.read()[-1]


def test_a_step_is_measured_with_its_wait_for_data(tmp_path, clock):
    log, statistics, state, told = run(tmp_path, clock, flops=(3e9, 4e12))
    row = step(log, statistics, state, clock, waits=0.5, computes=1.5)
    assert (row["step_s"], row["data_wait_s"], row["paused_s"], row["tokens_per_s"]) == (2.0, 0.5, 0.0, 500.0)
    assert row["mfu"] == 500 * 3e9 / 4e12
    assert row["memory_gib"] > 0
    [line] = told
    assert line.startswith("step 1/100  epoch 0.10  loss 1.0000  ")
    assert "  tok/s 500  mfu 37.5%  " in line


def test_answers_validation_and_saves_do_not_count(tmp_path, clock):
    log, statistics, state, _ = run(tmp_path, clock)
    state.global_step = 1
    SampleCallback(1, lambda step: clock.turn(50), statistics.stopwatch).on_step_end(None, state, None)
    validation = ValidationCallback(1, lambda: clock.turn(30) or 0.25, log.metrics_log, lambda values: None,
                                    statistics.stopwatch)
    validation.on_step_end(None, state, SimpleNamespace(should_log=True))
    with statistics.stopwatch.paused():  # as CheckedTrainer._save_checkpoint does
        clock.turn(20)
    row = step(log, statistics, state, clock, waits=0, computes=2)
    assert (row["tokens_per_s"], row["paused_s"]) == (500.0, 100.0)


def test_reports_get_what_is_measured(tmp_path, clock):
    log, _, state, _ = run(tmp_path, clock)
    clock.turn(1)
    logs = {"loss": 1.0}
    log.on_log(None, state, None, logs=logs)
    assert {"tokens_per_s", "step_s", "data_wait_s", "memory_gib"} <= set(logs)
    assert "mfu" not in logs  # no card


def test_slow_loading_is_told_once_and_not_of_the_first_steps(tmp_path, clock):
    log, statistics, state, told = run(tmp_path, clock)
    step(log, statistics, state, clock, waits=9, computes=1)
    step(log, statistics, state, clock, waits=0.1, computes=1)
    assert not [line for line in told if "warning" in line]
    step(log, statistics, state, clock, waits=0.3, computes=0.7)
    step(log, statistics, state, clock, waits=0.1, computes=0.9)
    assert not [line for line in told if "warning" in line]  # once is chance
    for _ in range(3):
        step(log, statistics, state, clock, waits=0.25, computes=0.75)
    [warning] = [line for line in told if "warning" in line]
    assert warning.startswith(
        "warning: data loading takes 25% of the step time on rank 0 (node 0) (0.250 of 1.000 s a step)")


def test_a_slow_rank_is_told_once_with_its_node():
    told = []
    watch = Watch(told.append, processes=2)
    for _ in range(4):
        watch.interval(10, [0, 0, 0, 0], [1.0, 1.19, 1.0, 1.3])
    [warning] = told
    assert warning.startswith("warning: rank 3 (node 1) is slower than the others")
    assert "take 1.30 s a step, 30% more than the median" in warning


def test_ranks_that_are_alike_or_alone_are_not_slow():
    told = []
    watch = Watch(told.append)
    for times in ([1.0, 1.1, 1.2], [5.0], [0.0, 0.0]):
        for _ in range(3):
            watch.interval(10, [0] * len(times), times)
    assert told == []


@pytest.fixture
def compile_norm(tmp_path, monkeypatch):
    """Compiles a kernel of ours for an H100, which needs none, once for every width of a block."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    if find_spec("triton") is None:
        pytest.skip("no Triton: it is there for Linux only")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from trainer.kernels import gpu

    kinds = {"x": "*bf16", "weight": "*bf16", "out": "*bf16", "width": "i32", "eps": "fp32", "BLOCK": "constexpr"}
    yield lambda block: triton.compile(ASTSource(gpu._rms_norm, kinds, {"BLOCK": block}), GPUTarget("cuda", 90, 32))
    triton.knobs.compilation.listener = None


def test_a_kernel_that_is_compiled_in_the_midst_of_training_is_named(compile_norm):
    """Once; not where it is compiled at first, and not where Triton finds it in its cache."""
    told = []
    watch = Watch(told.append)
    tell_of_kernels(watch.compiled)

    def interval():
        watch.interval(1, [0.0], [1.0])
        return len(told)

    compile_norm(64)
    assert interval() == 0
    assert interval() == 0
    compile_norm(64)
    assert interval() == 0
    compile_norm(128)
    assert interval() == 1
    compile_norm(256)
    assert interval() == 1
    assert " s for Triton to compile _rms_norm for a shape that had not come before" in told[0]


def test_only_forward_passes_of_training_are_timed(clock):
    model, times = Model(clock), ForwardTimes(CPU, clock)
    times.attach(model)
    for training, seconds in ((True, 1.5), (False, 100), (True, 0.5)):
        model.train(training)
        model.seconds = seconds
        model(torch.ones(1, 1))
        clock.turn(7)
    assert times.take() == 2.0
    assert times.take() == 0.0


def test_what_a_card_is_not_made_for():
    assert slow_precision("bf16", "NVIDIA H200", has_bf16=True) is None
    assert "model.dtype is fp32: NVIDIA H200 computes" in slow_precision("fp32", "NVIDIA H200", has_bf16=True)
    assert "Tesla V100 has no bf16 units" in slow_precision("bf16", "Tesla V100", has_bf16=False)


@pytest.fixture
def infiniband(tmp_path) -> tuple[Path, Path]:
    """/sys and /dev of a node with one InfiniBand device."""
    port = tmp_path / "sys/class/infiniband/mlx5_0/ports/1"
    port.mkdir(parents=True)
    (port / "state").write_text("4: ACTIVE\n")
    (tmp_path / "dev/infiniband").mkdir(parents=True)
    (tmp_path / "dev/infiniband/uverbs0").touch()
    return tmp_path / "sys", tmp_path / "dev"


def test_infiniband_that_works_is_no_warning(infiniband):
    assert slow_network({}, 2, *infiniband) is None


def test_one_node_needs_no_network(tmp_path):
    assert slow_network({"NCCL_IB_DISABLE": "1"}, 1, tmp_path, tmp_path) is None


@pytest.mark.parametrize(
    ("environ", "harm", "why"),
    [
        ({"NCCL_IB_DISABLE": "1"}, None, "NCCL_IB_DISABLE=1 is set"),
        ({"NCCL_NET": "Socket"}, None, "NCCL_NET=Socket is set"),
        ({}, "sys/class/infiniband/mlx5_0/ports/1/state", "shows no InfiniBand or RoCE device"),
        ({}, "dev/infiniband/uverbs0", "may not use the node's InfiniBand devices"),
    ],
)
def test_sockets_between_nodes_are_told_with_the_reason(infiniband, tmp_path, environ, harm, why):
    if harm:
        (tmp_path / harm).unlink()
    text = slow_network(environ, 2, *infiniband)
    assert text.startswith("NCCL talks between the nodes over sockets instead of InfiniBand: ")
    assert why in text


def test_a_port_that_is_down_is_no_network(infiniband, tmp_path):
    (tmp_path / "sys/class/infiniband/mlx5_0/ports/1/state").write_text("1: DOWN\n")
    assert "no port of this node's InfiniBand devices is active" in slow_network({}, 2, *infiniband)


def test_another_network_of_nccls_is_trusted(tmp_path):
    assert slow_network({"NCCL_NET": "AWS Libfabric"}, 2, tmp_path, tmp_path) is None
    assert slow_network({"NCCL_NET_PLUGIN": "ofi"}, 2, tmp_path, tmp_path) is None


def test_swap_that_is_nearly_full_is_told(tmp_path):
    meminfo = tmp_path / "meminfo"
    for free, causes in ((500_000, []), (90_000, ["swap"])):
        meminfo.write_text(f"MemTotal: 9 kB\nSwapTotal: 1000000 kB\nSwapFree: {free} kB\nHugePages_Total: 0\n")
        assert [cause for cause, _ in full_memory(tmp_path / "none", meminfo)] == causes


def test_shared_memory_that_is_nearly_full_is_told(tmp_path, monkeypatch):
    """Whatever the disk under the folder holds, a limit above it is kept, and one below it is not."""
    for limit, causes in ((1.0, []), (0.0, ["shared memory"])):
        monkeypatch.setattr("trainer.training.watch.NEARLY_FULL", limit)
        assert [cause for cause, _ in full_memory(tmp_path, tmp_path / "none")] == causes
