"""The hint at threads: only where it is of use."""

import logging

import pytest
import torch
from torch import nn
from toys import reset_accelerate, trainer

from flowrl.train.threads import hint_at_threads


@pytest.mark.parametrize(
    ("device", "threads", "width", "hinted"),
    [("cpu", 4, 3_000, True), ("cpu", 1, 3_000, False), ("cuda", 4, 3_000, False), ("cpu", 4, 4_000, False)],
)
def test_only_small_networks_on_a_cpu_with_several_threads_are_told_of_them(device, threads, width, hinted, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "flowrl")
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    with torch.device("meta"):  # 9 and 16 million parameters
        network = nn.Linear(width, width, bias=False)
    hint_at_threads(network, torch.device(device))
    assert ("OMP_NUM_THREADS=1 flowrl train" in caplog.text) == hinted


def test_a_run_gives_the_hint_once(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "flowrl")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    reset_accelerate()
    trainer(tmp_path / "run", updates=2).run()
    reset_accelerate()
    assert caplog.text.count("small networks train fastest with one thread") == 1
