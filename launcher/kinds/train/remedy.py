"""The nearest change to a job that makes it fit, found by estimating changed jobs. Pure.

Changes are tried in the order of KINDS, each alone from its mildest form on; then the first two together, the first
three, and so on, and of these the ones that are not needed are left out again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from launcher.kinds.train.limits import Limit, Limits, check_fit
from trainer.config.job import DeepSpeed, Section
from trainer.sizing.estimate import Estimate, Job, estimate

SHORTEST = 256  # tokens; shorter rows hold hardly a conversation
MOST_ACCUMULATION = 4096  # as trainer/config/job.py bounds it
GIB = 2**30


@dataclass(frozen=True)
class Setup:
    """A job, what there is for it, and the `--set` values by which it differs from the user's."""

    job: Job
    limits: Limits
    most_nodes: int
    most_per_node: int
    sets: dict[str, str] = field(default_factory=dict)

    @property
    def found(self) -> Estimate:
        """The estimate."""
        return estimate(self.job)

    @property
    def fits(self) -> bool:
        """Whether it surely fits."""
        return check_fit(self.found, self.limits, on_gpu=self.job.placement.on_gpu).word == "fits"

    def train(self, path: str, value: Any) -> "Setup":
        """With another value in the `train:` section."""
        config = _with(self.job.config, path.split("."), value)
        text = str(value).lower() if isinstance(value, bool) else str(value)
        return replace(self, job=replace(self.job, config=config), sets={**self.sets, f"train.{path}": text})

    def placed(self, *, nodes: int, per_node: int) -> "Setup":
        """On other nodes; a step keeps the rows it had, where that can be."""
        old, accumulation = self.job.placement, self.job.config.optimizer.accumulation
        placement = replace(old, nodes=nodes, per_node=per_node)
        sets = dict(self.sets)
        if nodes != old.nodes:
            sets["resources.nodes"] = str(nodes)
        if per_node != old.per_node:
            sets["resources.gpus_per_node"] = str(per_node)
        moved = replace(self, job=replace(self.job, placement=placement), sets=sets)
        fewer = max(1, accumulation * old.world // placement.world)
        return moved if fewer == accumulation else moved.train("optimizer.accumulation", fewer)

    def roomy(self) -> "Setup":
        """With as much of the nodes' memory as it needs."""
        limits, sets, found = self.limits, dict(self.sets), self.found
        if limits.host and found.host > limits.host.size:
            sets["resources.memory_per_node"], host = _gibibytes(found.host)
            limits = replace(limits, host=host)
        if limits.shm and found.shm > limits.shm.size:
            sets["resources.shm"], shm = _gibibytes(found.shm)
            limits = replace(limits, shm=shm)
        return replace(self, limits=limits, sets=sets)


def _with(section: Section, path: Sequence[str], value: Any) -> Any:
    name, *rest = path
    inner = getattr(section, name)
    if rest:
        value = _with(DeepSpeed.model_construct() if inner is None else inner, rest, value)
    return section.model_copy(update={name: value})


def _gibibytes(size: int) -> tuple[str, Limit]:
    number = -(-size // GIB)
    return f"{number}Gi", Limit(number * GIB, f"{number}Gi")


Kind = Callable[[Setup], list[Setup]]


def nearest_change(setup: Setup) -> Setup | None:
    """The job that fits with the fewest and first changes; None when none of them is enough."""
    if setup.roomy().fits:
        return setup.roomy()
    alone = [(kind,) for kind in KINDS]
    together = [KINDS[:number] for number in range(2, len(KINDS) + 1)]
    for kinds in (*alone, *together):
        if _reach(setup, kinds):
            return _fewest(setup, kinds)
    return None


def _reach(setup: Setup, kinds: Sequence[Kind]) -> Setup | None:
    """The first that fits on the way from the mildest form of the first kind to the strongest of the last."""
    for kind in kinds:
        variants = kind(setup)
        for variant in variants:
            if variant.roomy().fits:
                return variant.roomy()
        setup = variants[-1] if variants else setup
    return None


def _fewest(setup: Setup, kinds: Sequence[Kind]) -> Setup | None:
    for kind in kinds:
        fewer = [other for other in kinds if other is not kind]
        if _reach(setup, fewer):
            return _fewest(setup, fewer)
    return _reach(setup, kinds)


def _checkpointing(setup: Setup) -> list[Setup]:
    asked = setup.job.config.model.gradient_checkpointing
    settled = asked in {"auto", "offload"}  # as far as it goes
    return [] if settled else [setup.train("model.gradient_checkpointing", "auto")]


def _smaller_batches(setup: Setup) -> list[Setup]:
    """As many rows a step in more micro-steps."""
    optimizer = setup.job.config.optimizer
    rows = optimizer.batch_size * optimizer.accumulation
    sizes = [size for size in range(optimizer.batch_size - 1, 0, -1)
             if optimizer.batch_size % size == 0 and rows // size <= MOST_ACCUMULATION]
    return [setup.train("optimizer.batch_size", size).train("optimizer.accumulation", rows // size) for size in sizes]


def _higher_stages(setup: Setup) -> list[Setup]:
    now = setup.job.zero_stage
    return [setup.train("optimizer.deepspeed.zero_stage", stage) for stage in (1, 2, 3) if stage > now]


def _more_gpus(setup: Setup) -> list[Setup]:
    """Twice as many, and so on: first on the nodes there are."""
    place = setup.job.placement
    if not place.on_gpu:
        return []
    per_node = _doubles(place.per_node, setup.most_per_node)
    full = per_node[-1] if per_node else place.per_node
    return [setup.placed(nodes=place.nodes, per_node=number) for number in per_node] + [
        setup.placed(nodes=number, per_node=full) for number in _doubles(place.nodes, setup.most_nodes)]


def _doubles(start: int, most: int) -> list[int]:
    return [start * 2**power for power in range(1, most.bit_length() + 1) if start * 2**power <= most]


def _four_bit(setup: Setup) -> list[Setup]:
    model = setup.job.config.model
    return [setup.train("model.quantization", "nf4")] if model.lora and model.quantization == "none" else []


def _offloaded(setup: Setup) -> list[Setup]:
    deepspeed = setup.job.config.optimizer.deepspeed
    can = deepspeed is not None and deepspeed.offload == "none" and deepspeed.zero_stage >= 1
    return [setup.train("optimizer.deepspeed.offload", "cpu")] if can and setup.job.placement.on_gpu else []


def _shorter(setup: Setup) -> list[Setup]:
    longest = setup.job.config.data.max_length
    lengths = [longest >> halvings for halvings in range(1, longest.bit_length())]
    return [setup.train("data.max_length", length) for length in lengths if length >= SHORTEST]


KINDS: tuple[Kind, ...] = (_checkpointing, _smaller_batches, _higher_stages, _more_gpus, _four_bit, _offloaded,
                           _shorter)
