"""Learning itself: each method raises a simple reward within seconds, on noise that is the same before and after.

The measured rise stands beside each case; runs on a CPU repeat exactly, so half of it is a safe bound. With the advantage's sign turned
round every one of them falls.
"""

import pytest
from toys import DYNAMICS, GRID, PROMPTS, Bright, lines, sde, trainer

from flowrl.models import LoRA, StableDiffusion3
from flowrl.rl import GroupAdvantage, MultiGranularityAdvantage
from flowrl.train import AdamW, Evaluation
from samplers import ODESampler, SingularStochasticSampler, WindowSampler

G2RPO = {
    "sampler": SingularStochasticSampler(grid=GRID, dynamics=DYNAMICS, group_size=8, sde_indices=(0, 1, 2), strides=(1, 2)),
    "advantage": MultiGranularityAdvantage(),
}
FLOW_GRPO = {"sampler": sde(group_size=8), "advantage": GroupAdvantage(std="batch", ddof=0, eps=1e-4)}
MIX_GRPO = {"sampler": WindowSampler(grid=GRID, dynamics=DYNAMICS, group_size=8, size=2, shift_every=1), "advantage": GroupAdvantage()}


def rise(run_dir, prompts, **fields):
    """Change of the mean reward of pictures drawn without noise, last against first."""
    evaluation = Evaluation(prompts=prompts, sampler=ODESampler(grid=GRID), rewards=(Bright(),), images_per_prompt=8)
    trainer(run_dir, evaluation=evaluation, evaluate_every=1000, checkpoint_every=1000, **fields).run()
    before, after = [line["eval/bright"] for line in lines(run_dir, "eval")]
    return after - before


@pytest.mark.parametrize(("method", "measured"), [(G2RPO, 0.154), (FLOW_GRPO, 0.025), (MIX_GRPO, 0.065)], ids=["g2rpo", "flow", "mix"])
def test_each_method_raises_the_reward_of_a_toy_model(method, measured, tmp_path):
    assert rise(tmp_path / "run", PROMPTS, updates=20, optimizer=AdamW(lr=5e-2), **method) > measured / 2


@pytest.mark.parametrize(
    ("lora", "lr", "measured"), [(LoRA(rank=4, alpha=8.0), 3e-2, 0.031), (None, 3e-3, 0.104)], ids=["lora", "all weights"]
)
def test_g2rpo_raises_the_reward_of_a_stable_diffusion_3_pipeline(lora, lr, measured, pipeline_folder, tmp_path):
    (tmp_path / "prompts.txt").write_text("red\nblue\n", encoding="utf-8")
    model = StableDiffusion3(path=str(pipeline_folder), max_sequence_length=0, decode_batch=64, lora=lora)
    assert rise(tmp_path / "run", ("red", "blue"), model=model, updates=12, optimizer=AdamW(lr=lr), **G2RPO) > measured / 2
