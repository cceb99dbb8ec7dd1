"""Which field the steps after the last stochastic one are taken with."""

from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from flowrl.flow import ClassifierFreeGuidance, Condition, has_tail, tail_of

LENGTHS = Condition({"length": torch.tensor([[1.0], [2.0]])})


@dataclass(frozen=True)
class Constant:
    """A velocity of one value, and another in tails."""

    value: float
    in_tails: float | None = None
    events: list[str] = field(default_factory=list, compare=False)

    @property
    def tail(self):
        return None if self.in_tails is None else self._tail

    @contextmanager
    def _tail(self):
        self.events.append("begin")
        try:
            yield Constant(self.in_tails)
        finally:
            self.events.append("end")

    def __call__(self, x_t: Tensor, t: float, condition: Condition) -> Tensor:
        return torch.full_like(x_t, self.value) * condition.tensors["length"]


@dataclass(frozen=True)
class Pair:
    """A wrapper of two fields."""

    high: Constant | ClassifierFreeGuidance
    low: Constant | ClassifierFreeGuidance
    name: str = "pair"

    def __call__(self, x_t: Tensor, t: float, condition: Condition) -> Tensor:
        return (self.high if t > 0.5 else self.low)(x_t, t, condition)


def value(of, t=0.9):
    return of(torch.zeros(2, 1), t, LENGTHS)[:, 0].tolist()


def test_a_field_that_offers_none_is_its_own_tail():
    plain = Constant(1.0)
    assert not has_tail(plain)
    with tail_of(plain) as tail:
        assert tail is plain


def test_a_tail_begins_and_ends_with_its_context_even_when_it_fails():
    own = Constant(1.0, in_tails=3.0)
    with tail_of(own) as tail:
        assert value(tail) == [3.0, 6.0]
    assert own.events == ["begin", "end"]
    with pytest.raises(KeyError), tail_of(own) as tail:
        tail(torch.zeros(2, 1), 0.9, Condition({}))
    assert own.events == ["begin", "end"] * 2
    assert value(own) == [1.0, 2.0]


def test_guidance_guides_the_tail_of_what_it_wraps():
    negative = Condition({"length": torch.tensor([[10.0]])})
    guided = ClassifierFreeGuidance(field=Constant(1.0, in_tails=3.0), scale=2.0, negative=negative)
    assert has_tail(guided)
    with tail_of(guided) as tail:
        assert value(tail) == [30 + 2 * (3 - 30), 30 + 2 * (6 - 30)]
    assert not has_tail(ClassifierFreeGuidance(field=Constant(1.0), scale=2.0, negative=negative))


def test_a_field_that_is_wrapped_twice_has_one_tail():
    shared = Constant(1.0, in_tails=3.0)
    guided = ClassifierFreeGuidance(field=shared, scale=0.0, negative=Condition({"length": torch.tensor([[10.0]])}))
    with tail_of(Pair(high=guided, low=shared)) as tail:
        assert value(tail, t=0.9) == [30.0, 30.0]
        assert value(tail, t=0.1) == [3.0, 6.0]
        assert shared.events == ["begin"]
    assert shared.events == ["begin", "end"]


def test_of_two_wrapped_fields_each_has_its_own():
    with tail_of(Pair(high=Constant(1.0, in_tails=3.0), low=Constant(5.0))) as tail:
        assert value(tail, t=0.9) == [3.0, 6.0]
        assert value(tail, t=0.1) == [5.0, 10.0]
