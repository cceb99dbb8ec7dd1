"""What one GPU holds: what stays throughout, and what each phase of an update takes on top."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from flowrl.models.options import DTYPES
from flowrl.rl import needs_reference
from flowrl.train.plan.architecture import Architecture, Part, architecture_of
from flowrl.train.plan.cost import largest_call, network_calls, rollout_cost
from flowrl.train.plan.inputs import Geometry, geometry_of
from flowrl.train.plan.passes import Cost, NetworkSetup, decoding, evaluating, sizes, updating
from flowrl.train.trainer import RLTrainer

if TYPE_CHECKING:
    from collections.abc import Callable

    from flowrl.train.plan.passes import Sizes
    from flowrl.train.plan.strategies import Strategy

__all__ = ["MemoryPart", "MemoryPlan", "RewardNetwork", "Subject", "least_peak", "memory_plan"]

FLOAT32 = 4  # bytes
MOMENTS = {"AdamW": 8.0, "AdamW8bit": 2.03125}  # bytes per trained weight; 8 bits and a float32 for every 256 of each moment
LARGEST_PART_OF_A_STEP = 1.0  # of the trained weights: CUDA's AdamW takes the roots of all second moments at once
STATES_UNDER_WAY = 4  # float32 latents per row that a sampler's step holds: state, velocity, what the network got, the next state
CONTEXT = 1024**3  # bytes that CUDA and its libraries take: an allowance, not measured
FRAGMENTATION = 0.05  # of the rest: an allowance


@dataclass(frozen=True, kw_only=True)
class MemoryPart:
    """One thing that occupies memory.

    Attributes:
        name: What it is.
        size: Bytes on one process.
    """

    name: str
    size: int


@dataclass(frozen=True, kw_only=True)
class RewardNetwork:
    """A network behind a reward.

    Attributes:
        name: Of the reward.
        weights: Bytes.
        scoring: Of one of its batches; None where it is not known.
        batch: Pictures of such a batch.
        trained_on: Whether it scores rollouts, beside evaluations.
    """

    name: str
    weights: int
    scoring: Cost | None = None
    batch: int = 1
    trained_on: bool = True

    @property
    def operations_per_picture(self) -> float:
        """0 where it is not known."""
        return self.scoring.operations / self.batch if self.scoring else 0.0


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """What one process holds.

    Attributes:
        held: What stays throughout training.
        phases: What each phase takes on top.
        reserve: An allowance for the device's own needs and for gaps between tensors.
    """

    held: Sequence[MemoryPart]
    phases: Sequence[MemoryPart]
    reserve: int

    @property
    def largest_phase(self) -> MemoryPart:
        """The phase that decides."""
        return max(self.phases, key=lambda phase: phase.size)

    @property
    def peak(self) -> int:
        """Bytes at the worst moment, with the reserve."""
        return sum(part.size for part in self.held) + self.largest_phase.size + self.reserve


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A trainer's model, known by its architecture alone.

    Attributes:
        trainer: The configuration.
        architecture: Of its pipeline.
        geometry: Of a picture.
        network: How the network is trained.
        decoder: The part that decodes.
        rewards: Networks of training and evaluation rewards on the same device.
        cuda: False for what a CPU does.
    """

    trainer: RLTrainer
    architecture: Architecture
    geometry: Geometry
    network: NetworkSetup
    decoder: Part
    rewards: Sequence[RewardNetwork] = ()
    cuda: bool = True

    @staticmethod
    def of(trainer: RLTrainer, rewards: Sequence[RewardNetwork] = (), *, cuda: bool = True) -> Subject:
        """Look a trainer's model up.

        Raises:
            CheckpointError: If its folder is missing.
            ValueError: If it is no diffusers pipeline, or its architecture is not known on this machine.
        """
        source: Any = trainer.model
        if not hasattr(source, "compute_dtype"):
            raise ValueError(f"memory can be estimated for diffusers pipelines, not for a {type(source).__name__}")
        architecture = architecture_of(source.path)
        geometry = geometry_of(architecture, source)
        network = NetworkSetup(
            part=architecture.parts[source.network],
            geometry=geometry,
            lora=source.lora,
            storage=source.storage_dtype,
            compute=source.compute_dtype,
            quantise=source.quantise,
            checkpointing=source.gradient_checkpointing,
            cuda=cuda,
        )
        decoder = architecture.parts["vae"]
        return Subject(
            trainer=trainer, architecture=architecture, geometry=geometry, network=network, decoder=decoder, rewards=rewards, cuda=cuda
        )

    @property
    def source(self) -> Any:
        """The model's configuration."""
        return self.trainer.model

    @property
    def sizes(self) -> Sizes:
        """Of the network."""
        return sizes(self.network)

    def other_parts(self) -> dict[str, int]:
        """Bytes of the frozen parts that are held beside the network, by name."""
        parts = self._parts_on_disk()
        if self.source.quantise is None:
            return parts
        experts = {name: part for name, part in self.architecture.parts.items() if name in parts and part.kind == self.network.part.kind}
        return parts | {name: sizes(replace(self.network, part=part, lora=None)).total for name, part in experts.items()}

    def loaded(self) -> int:
        """Bytes of main memory that loading takes: all parts, before weights are packed."""
        return sizes(replace(self.network, quantise=None)).total + sum(self._parts_on_disk().values())

    def _parts_on_disk(self) -> dict[str, int]:
        element = {name: _bytes(self.source.compute_dtype) for name in self.architecture.parts}
        element["vae"] = _bytes(DTYPES[self.source.decoder_dtype])
        unused = {self.source.network, *self.source.unused_parts}
        return {name: part.parameters * element[name] for name, part in self.architecture.parts.items() if name not in unused}

    def encoders(self) -> int:
        """Bytes of the text encoders."""
        return sum(self.other_parts().get(name, 0) for name in self.architecture.encoders())


def memory_plan(subject: Subject, strategy: Strategy) -> MemoryPlan:
    """Add up what a process holds.

    Raises:
        ConfigError: If the groups cannot be shared evenly, or the strategy does not know packed weights.
        ValueError: If a network's pass is not known.
    """
    strategy.check(subject.source)
    held = [part for part in _held(subject, strategy) if part.size]
    phases = [MemoryPart(name=name, size=size()) for name, size in _phases(subject, strategy, held).items()]
    return _with_reserve(subject, held, phases)


def least_peak(subject: Subject, strategy: Strategy, phase: str) -> int:
    """Bytes that `memory_plan` will find at least, from one of its phases alone: much quicker than all of them.

    Raises:
        ConfigError: As `memory_plan`.
        ValueError: As `memory_plan`.
    """
    strategy.check(subject.source)
    held = [part for part in _held(subject, strategy) if part.size]
    return _with_reserve(subject, held, [MemoryPart(name=phase, size=_phases(subject, strategy, held)[phase]())]).peak


def _with_reserve(subject: Subject, held: Sequence[MemoryPart], phases: Sequence[MemoryPart]) -> MemoryPlan:
    total = sum(part.size for part in held) + max(phase.size for phase in phases)
    reserve = int(CONTEXT + FRAGMENTATION * total) if subject.cuda else 0
    return MemoryPlan(held=held, phases=phases, reserve=reserve)


def _held(subject: Subject, strategy: Strategy) -> list[MemoryPart]:
    trainer, source, weights = subject.trainer, subject.source, subject.sizes
    trained = weights.trained * FLOAT32
    parts = subject.other_parts()
    encoders = subject.encoders() if source.text_encoders == "keep" else 0
    others = sum(size for name, size in parts.items() if name not in {"vae", *subject.architecture.encoders()})
    reference = weights.total if needs_reference(trainer.objective) and source.lora is None else 0
    moments = MOMENTS.get(type(trainer.optimizer).__name__, MOMENTS["AdamW"])
    latents = rollout_cost(trainer).stored_states * subject.geometry.state_bytes
    return [
        MemoryPart(name="network", size=strategy.weights(weights)),
        MemoryPart(name="optimiser", size=strategy.moments(moments * weights.trained)),
        MemoryPart(name="weight average", size=strategy.share(trained) if trainer.ema_decay is not None else 0),
        MemoryPart(name="strategy's buffers", size=strategy.buffers(weights)),
        MemoryPart(name="reference network", size=strategy.share(reference)),
        MemoryPart(name="text encoders", size=encoders),
        MemoryPart(name="decoder", size=parts.get("vae", 0) if source.decoder == "keep" else 0),
        MemoryPart(name="other parts", size=others),
        MemoryPart(name="rewards' networks", size=sum(network.weights for network in subject.rewards)),
        MemoryPart(name="latents of a rollout", size=latents // strategy.processes),
    ]


def _phases(subject: Subject, strategy: Strategy, held: Sequence[MemoryPart]) -> dict[str, Callable[[], int]]:
    """What each phase takes, found when it is asked for."""
    trainer, weights = subject.trainer, subject.sizes
    groups = trainer.check_groups(strategy.processes)
    gathered = strategy.gathered(weights)
    gradients = strategy.gradients(weights.trained * FLOAT32)
    rows = min(trainer.update.micro_batch, max(1, rollout_cost(trainer).trained_states // strategy.processes))
    step = int(LARGEST_PART_OF_A_STEP * gradients) if subject.cuda else 0
    kept = gradients + gathered + strategy.whole_gradients(weights)
    phases: dict[str, Callable[[], int]] = {
        "start, encoding prompts": lambda: _start(subject, held),
        "rollout": lambda: _drawing(subject, largest_call(trainer, groups)) + gathered,
        "decoding and scoring": lambda: _scoring(subject, trainer.reward_batch),
        "update": lambda: updating(subject.network, rows * network_calls(subject.source)).peak + kept,
        "optimiser step": lambda: gradients + step,
    }
    if trainer.evaluation is not None:
        phases["evaluation"] = lambda: _evaluation(subject) + gathered
    return phases


def _start(subject: Subject, held: Sequence[MemoryPart]) -> int:
    """While prompts are encoded: the network is whole, the text encoders work, rewards are loaded; there is no optimiser yet."""
    kept = {"decoder", "other parts", "rewards' networks"}
    there = subject.sizes.total + subject.encoders() + sum(part.size for part in held if part.name in kept)
    return max(0, there - sum(part.size for part in held))


def _drawing(subject: Subject, rows: int) -> int:
    """Of a rollout's largest call of the network."""
    return evaluating(subject.network, rows).peak + STATES_UNDER_WAY * rows * subject.geometry.state_bytes


def _scoring(subject: Subject, pictures: int) -> int:
    """Of decoding and scoring so many pictures: they add up beside the decoder's work, are joined, then scored."""
    source, one = subject.source, subject.geometry.picture_bytes
    decoder = 0 if source.decoder == "keep" else subject.other_parts().get("vae", 0)
    rows = min(pictures, source.decode_batch)
    work = decoding(subject.decoder, _tile(subject), rows, DTYPES[source.decoder_dtype]).peak + 2 * rows * one * bool(source.decode_tile)
    scoring = max((network.scoring.peak for network in subject.rewards if network.scoring), default=0)
    return max(decoder + work + pictures * one, 2 * pictures * one, pictures * one + scoring)


def _tile(subject: Subject) -> Geometry:
    """What the decoder gets at once."""
    geometry, side = subject.geometry, subject.source.decode_tile
    if side is None:
        return geometry
    *first, height, width = geometry.latent
    factor = geometry.pixels[-1] // width
    return replace(geometry, latent=(*first, min(height, max(1, side // factor)), min(width, max(1, side // factor))))


def _evaluation(subject: Subject) -> int:
    """Of one block of an evaluation: drawn, decoded, joined, measured and scored together."""
    evaluation = subject.trainer.evaluation
    if evaluation is None:
        return 0
    pictures = min(evaluation.batch, evaluation.images)
    rows = min(pictures, getattr(evaluation.sampler, "max_batch", None) or pictures) * network_calls(subject.source)
    shown = pictures * subject.geometry.picture_bytes
    return max(_drawing(subject, rows), _scoring(subject, pictures), 4 * shown)


def _bytes(dtype: torch.dtype) -> int:
    return torch.empty(0, dtype=dtype).element_size()
