"""Which weights to compose with: candidates, races on common seeds, a prior from demonstrations, an honest report."""

from robot.search.prior import DenoisingPrior
from robot.search.racing import Exhaustive, SuccessiveHalving, WilsonRace
from robot.search.results import CompositionResult
from robot.search.search import CompositionEvaluation, WeightSearch

__all__ = ["CompositionEvaluation", "CompositionResult", "DenoisingPrior", "Exhaustive", "SuccessiveHalving", "WeightSearch", "WilsonRace"]
