"""Real-sized networks with random weights: seconds, memory and the ratio's drift of every option that trades them.

    python benchmarks/large_models.py                   # SD3.5-M and FLUX.1-dev in bfloat16, on a GPU
    python benchmarks/large_models.py --small           # the same code on networks of two blocks, on any machine

Weights are random, so pictures mean nothing, but every kernel has its real size: the published configurations of ``assets/architectures``
are built, loaded by the adapters as a pipeline would be, and a LoRA is trained on them. Each row is one process of its own:

- ``first call``: seconds of the first evaluation, compilation included;
- ``rollout``: milliseconds per state of a G²RPO rollout (8 steps, stochastic steps 0 and 2, strides 1 and 2), counted as without caching;
- ``update``: milliseconds per trained state, forward and backward;
- ``GB``: largest allocated memory in each, weights included (GPU only);
- ``ratio``: largest distance of the policy ratio from 1 although no weight has moved: with the rollout's own log-probabilities, and with
  those that ``update.old_log_prob: recompute`` takes before the update; the rollout evaluates two states at a time, the update one;
- ``decode``: milliseconds and GB for a picture.

Writes ``benchmarks/results/large_models.json`` and ``.md`` (``large_models_small`` with ``--small``).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from accelerate import Accelerator
from turns import machine, markdown_rows

from flowrl.config import asset_path
from flowrl.flow import Condition, FlowSDE
from flowrl.models import DiffusersModel, FirstBlockCache, Flux1, LoRA, StableDiffusion3, TaylorSeerCache
from flowrl.rl import PPOClip
from flowrl.shapes import seeded_generator
from flowrl.train import AdamW, UpdateSettings
from flowrl.train.experience import Experience
from flowrl.train.learner import Learner
from samplers import ShiftedGrid, SingularStochasticSampler

if TYPE_CHECKING:
    from collections.abc import Callable

    from flowrl.models import DiffusersSource

RESULTS = Path(__file__).parent / "results"
NETWORKS = {"SD3.5-M": "sd3_5_medium", "FLUX.1-dev": "flux1_dev"}
SMALLER: dict[str, Any] = {
    "num_layers": 2, "num_single_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16, "joint_attention_dim": 32,
    "pooled_projection_dim": 32, "caption_projection_dim": 32, "axes_dims_rope": [4, 6, 6], "dual_attention_layers": [0],
}  # fmt: skip
SETUPS: dict[str, dict[str, Any]] = {
    "plain": {},
    "recomputed activations": {"gradient_checkpointing": True},
    "compiled blocks": {"compile": "blocks"},
    "compiled, recomputed": {"compile": "blocks", "gradient_checkpointing": True},
    "flash attention": {"attention": "flash"},
    "first block 0.1 in tails": {"tail_cache": FirstBlockCache(threshold=0.1), "gradient_checkpointing": True},
    "Taylor, every 2nd in tails": {"tail_cache": TaylorSeerCache(interval=2), "gradient_checkpointing": True},
    "decoder in bfloat16, tiles": {"decoder_dtype": "bfloat16", "decode_tile": 512, "gradient_checkpointing": True},
    "float32": {"dtype": "float32", "gradient_checkpointing": True},
}
PROMPTS, GROUP, BATCH = 2, 4, 4
TEXT_TOKENS = {"SD3.5-M": 333, "FLUX.1-dev": 512}


@dataclass(frozen=True, kw_only=True)
class Task:
    """One row.

    Attributes:
        network: A key of :data:`NETWORKS`.
        setup: A key of :data:`SETUPS`.
        side: Of the picture in pixels.
        small: Whether the network has two blocks.
    """

    network: str
    setup: str
    side: int
    small: bool

    @property
    def source(self) -> DiffusersSource:
        """The adapter's configuration."""
        kind: type[DiffusersSource] = {"SD3.5-M": RandomSD3, "FLUX.1-dev": RandomFlux}[self.network]
        fields: dict[str, Any] = {"dtype": "bfloat16", "lora": LoRA(rank=16), "height": self.side, "width": self.side} | SETUPS[self.setup]
        if self.small and "decode_tile" in fields:
            fields["decode_tile"] = self.side // 2
        return kind(path="small" if self.small else "random", **fields)


@dataclass(frozen=True, kw_only=True)
class RandomSD3(StableDiffusion3):
    """A network of the published size with random weights, in a pipeline without text encoders."""

    described: ClassVar[str] = NETWORKS["SD3.5-M"]

    def _pipeline(self) -> Any:
        return random_pipeline(self, self.described)


@dataclass(frozen=True, kw_only=True)
class RandomFlux(Flux1):
    """As :class:`RandomSD3`."""

    described: ClassVar[str] = NETWORKS["FLUX.1-dev"]

    def _pipeline(self) -> Any:
        return random_pipeline(self, self.described)


def random_pipeline(source: DiffusersSource, described: str) -> Any:
    """Built on the GPU if there is one, in the dtype in which a checkpoint would be read."""
    import diffusers

    parts = json.loads(asset_path(f"architectures/{described}.json").read_text(encoding="utf-8"))["parts"]
    shared = json.loads(asset_path("architectures/shared.json").read_text(encoding="utf-8"))
    network, vae, small = parts["transformer"], shared[parts["vae"]], source.path == "small"
    config = network["config"] | ({name: value for name, value in SMALLER.items() if name in network["config"]} if small else {})
    decoder = vae["config"] | ({"block_out_channels": [4, 4, 4, 4], "norm_num_groups": 2, "layers_per_block": 1} if small else {})
    built = []
    for kind, settings, dtype in ((network["class"], config, source.storage_dtype), (vae["class"], decoder, source.decoder_dtype)):
        torch.set_default_dtype(dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype))
        with torch.device(device()):
            built.append(getattr(diffusers, kind).from_config(settings).eval())
    torch.set_default_dtype(torch.float32)
    pipeline = getattr(diffusers, source.pipeline_name)
    absent = dict.fromkeys({"text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"})
    absent |= dict.fromkeys({"text_encoder_3", "tokenizer_3"} if "text_encoder_3" in parts else set())
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return pipeline(transformer=built[0], vae=built[1], scheduler=scheduler, **absent)


def device() -> str:
    """Where it is measured."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def random_condition(model: DiffusersModel, tokens: int) -> Condition:
    """Prompts' embeddings of the network's own widths."""
    config, generator = model.module.config, seeded_generator(0)
    shapes = {
        "prompt_embeds": (PROMPTS, tokens, config.joint_attention_dim),
        "pooled_prompt_embeds": (PROMPTS, config.pooled_projection_dim),
    }
    return Condition({name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}).to(model.device)


def measured(work: Callable[[], Any]) -> tuple[Any, float, float | None]:
    """The result, its seconds, and the largest allocated memory in GB."""
    gc.collect()
    if device() == "cuda":
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = work()
    if device() == "cuda":
        torch.cuda.synchronize()
        return result, time.perf_counter() - start, torch.cuda.max_memory_allocated() / 1e9
    return result, time.perf_counter() - start, None


def learner_of(model: DiffusersModel) -> Learner:
    """AdamW so slow that the policy stays what it is."""
    accelerator = Accelerator(cpu=device() == "cpu")
    optimizer, schedule = AdamW(lr=1.0e-30, weight_decay=0.0).build(model.trainable_parameters(), 100)
    prepared, optimizer = accelerator.prepare(model.module, optimizer)
    return Learner(
        accelerator=accelerator,
        model=model,
        prepared=prepared,
        parameters=model.trainable_parameters(),
        objective=PPOClip(),
        optimizer=optimizer,
        schedule=schedule,
        settings=UpdateSettings(micro_batch=1),
    )


def measure(task: Task) -> dict[str, Any]:
    """One row."""
    model = task.source.load(device())
    sampler = SingularStochasticSampler(
        grid=ShiftedGrid(steps=8, shift=3.0),
        dynamics=FlowSDE(noise_level=0.7),
        group_size=GROUP,
        sde_indices=(0, 2),
        strides=(1, 2),
        max_batch=BATCH,
    )
    condition = random_condition(model, TEXT_TOKENS[task.network] if not task.small else 8)
    noise = torch.randn(PROMPTS, *model.state_shape, generator=seeded_generator(1)).to(model.device)

    def rollout() -> Any:
        return sampler.sample(model.field(), noise, condition, [seeded_generator(2, prompt) for prompt in range(PROMPTS)])

    with torch.no_grad():
        _, first, _ = measured(lambda: model.field()(noise, 0.5, condition))
    rollout()
    trajectory, drawing, drawn = measured(rollout)
    advantage = torch.randn(trajectory.log_prob.shape, generator=seeded_generator(3)).to(trajectory.log_prob)
    experience = Experience(trajectory=trajectory, condition=condition, dynamics=sampler.dynamics, advantage=advantage)
    learner = learner_of(model)
    direct = learner.update(experience)
    recomputed = experience.with_old_log_prob(learner.rescore(experience))
    after, updating, updated = measured(lambda: learner.update(recomputed))
    _, decoding, decoded = measured(lambda: model.decode(trajectory.samples[:1, 0, 0]))
    return {
        "network": task.network,
        "side": task.side,
        "setup": task.setup,
        "weights (B)": sum(parameter.numel() for parameter in model.module.parameters()) / 1e9,
        "first call (s)": first,
        "rollout (ms)": 1000 * drawing / (PROMPTS * sampler.evaluations()),
        "rollout (GB)": drawn,
        "update (ms)": 1000 * updating / len(trajectory.parents),
        "update (GB)": updated,
        "ratio, direct": direct["ratio_max_dev"],
        "ratio, recompute": after["ratio_max_dev"],
        "decode (ms)": 1000 * decoding,
        "decode (GB)": decoded,
    }


def in_its_own_process(task: Task) -> dict[str, Any]:
    """A row, or what is wrong."""
    command = [sys.executable, __file__, "--row", json.dumps(vars(task))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "row.json"
        done = subprocess.run([*command, "--out", str(path)], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return json.loads(path.read_text(encoding="utf-8"))
    problem = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return {"network": task.network, "side": task.side, "setup": task.setup, "problem": problem[:300]}


def report(rows: list[dict[str, Any]], out: Path, about: str) -> None:
    """JSON and Markdown."""
    out.write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    shown = [
        {name: "" if value is None else value for name, value in row.items() if name != "problem"} for row in rows if "problem" not in row
    ]
    failed = [f"- {row['network']} {row['side']}, {row['setup']}: {row['problem']}" for row in rows if "problem" in row]
    lines = ["# Large networks", "", f"`{' '.join(['python', 'benchmarks/large_models.py', *sys.argv[1:]])}`", "", about, ""]
    lines += markdown_rows(shown) + (["", "Not measured:", "", *failed] if failed else [])
    out.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Measure every row, and write the results after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--setups", nargs="+", default=list(SETUPS), choices=list(SETUPS))
    parser.add_argument("--sides", nargs="+", type=int)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.row:
        arguments.out.write_text(json.dumps(measure(Task(**json.loads(arguments.row)))), encoding="utf-8")
        return
    sides = arguments.sides or ([64] if arguments.small else [512, 1024])
    out = arguments.out or RESULTS / f"large_models{'_small' if arguments.small else ''}.json"
    where = torch.cuda.get_device_name() if device() == "cuda" else f"{machine()}; load average {os.getloadavg()[0]:.1f} before"
    where += ". Networks of two blocks: this shows that the code runs, not what anything costs" if arguments.small else ""
    rows: list[dict[str, Any]] = []
    for network in arguments.networks:
        for side in sides:
            for setup in arguments.setups:
                rows.append(in_its_own_process(Task(network=network, setup=setup, side=side, small=arguments.small)))
                report(rows, out, f"{where}; torch {torch.__version__}. LoRA of rank 16, groups of {GROUP}, at most {BATCH} states a call.")


if __name__ == "__main__":
    main()
