"""Members of one architecture called as one."""

import pytest
import torch
from torch import nn

from flowrl.flow import RectifiedFlow
from robot import Composer, Member


class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.inner, self.outer, self.calls = nn.Linear(4, width), nn.Linear(width, 2), 0

    def forward(self, x, time, features):
        self.calls += 1
        extra = torch.cat([time.reshape(-1, 1, 1).expand(*x.shape[:2], 1), features[:, None, :].expand(*x.shape[:2], 1)], -1)
        return self.outer(torch.tanh(self.inner(torch.cat([x, extra], -1))))


def predictor(network):
    return lambda x, t, features: network(x, 1000 * t, features)


def member(seed, weight, **more):
    torch.manual_seed(seed)
    net = Net(**more)
    return Member(
        predict=predictor(net), kind="velocity", path=RectifiedFlow(), weight=weight, network=net, predictor=predictor, scale=2.0 + seed
    )


def draw(composer, **settings):
    seen = torch.tensor([[0.3], [-0.4], [1.0]])
    return composer.compose((3, 4, 2), steps=5, generator=torch.Generator().manual_seed(0), condition=seen, **settings)


def test_networks_called_as_one_give_what_they_give_in_turn():
    members = [member(0, 0.3), member(1, 0.7)]
    in_turn, as_one = draw(Composer(members)), draw(Composer(members, vmap=True))
    torch.testing.assert_close(as_one.actions, in_turn.actions, atol=5e-6, rtol=0)
    assert as_one.evaluations == in_turn.evaluations


def test_each_network_is_traced_once_a_step():
    members = [member(0, 0.3), member(1, 0.7)]
    draw(Composer(members, vmap=True))
    assert [m.network.calls for m in members] == [5, 0]


def test_rows_that_differ_in_who_is_asked_fall_back_to_calls_in_turn():
    members = [member(0, 0.3), member(1, 0.7)]
    table = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.2, 0.8]])
    torch.testing.assert_close(
        draw(Composer(members, vmap=True), weights=table).actions, draw(Composer(members), weights=table).actions, atol=1e-6, rtol=0
    )


def test_networks_of_different_architectures_are_refused():
    with pytest.raises(ValueError, match="networks of one architecture"):
        draw(Composer([member(0, 0.3), member(1, 0.7, width=9)], vmap=True))
