import re

import pytest

from flowrl.train.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Line, bar_chart, line_chart, smoothed


def polylines(svg: str) -> list[list[tuple[float, float]]]:
    return [
        [tuple(map(float, point.split(","))) for point in points.split()] for points in re.findall(r'<polyline[^>]*points="([^"]*)"', svg)
    ]


def test_a_curve_runs_through_its_points():
    svg = line_chart([Line(name="reward", x=[0, 5, 10], y=[0.0, 0.5, 1.0])], x_label="updates")
    middle = ((LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2)
    assert polylines(svg) == [[(LEFT, HEIGHT - BOTTOM), pytest.approx(middle), (WIDTH - RIGHT, TOP)]]


def test_decades_are_evenly_spaced_on_a_logarithmic_axis():
    svg = line_chart([Line(name="ratio", x=[0, 1, 2], y=[1e-6, 1e-5, 1e-4])], x_label="updates", log=True)
    (low, middle, high) = (y for _, y in polylines(svg)[0])
    assert low - middle == pytest.approx(middle - high, abs=0.02)
    assert ">1e−5</text>" in svg


def test_what_cannot_be_drawn_is_left_out():
    svg = line_chart([Line(name="a", x=[0, 1, 2, 3], y=[1.0, float("nan"), 0.0, 10.0])], x_label="updates", log=True)
    assert len(polylines(svg)[0]) == 2
    assert "nothing recorded" in line_chart([Line(name="a", x=[0], y=[-1.0])], x_label="updates", log=True)
    assert "nothing recorded" in line_chart([], x_label="updates")


@pytest.mark.parametrize("y", [[0.0], [3.0, 3.0], [-2.0, -2.0, -2.0]])
def test_a_curve_without_extent_is_still_drawn(y):
    assert "<circle" in line_chart([Line(name="a", x=list(range(len(y))), y=y, markers=True)], x_label="updates")


def test_a_long_curve_is_thinned_but_keeps_its_ends():
    svg = line_chart([Line(name="a", x=range(10_001), y=[float(i) for i in range(10_001)], smooth=False)], x_label="updates")
    points = polylines(svg)[0]
    assert len(points) <= 402
    assert (points[0][0], points[-1][0]) == (LEFT, WIDTH - RIGHT)


def test_smoothing_is_a_centred_mean_over_a_tenth():
    values = [0.0] * 20 + [1.0] * 20  # 40 points: 2 to each side
    means, window = smoothed(values)
    assert window == 5
    assert means[17:23] == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])


def test_hovering_tells_all_curves_at_a_position():
    lines = [Line(name="a", x=[0, 5], y=[0.25, 1.0], ci95=[0.1, 0.2]), Line(name="b", x=[5], y=[2.0])]
    assert "<title>5: a 1 ± 0.2, b 2</title>" in line_chart(lines, x_label="updates")


def test_bars_are_as_tall_as_their_values():
    svg = bar_chart({"early": [1.0, 0.5], "late": [0.5, 0.0]}, ["0", "1"], x_label="step")
    heights = [float(h) for h in re.findall(r'class="bar[^>]*height="([\d.]+)"', svg)]
    assert heights == pytest.approx([h * (HEIGHT - TOP - BOTTOM) for h in (1.0, 0.5, 0.5, 0.0)], abs=0.01)


def test_names_are_escaped():
    assert "<b>" not in line_chart([Line(name="<b>", x=[0, 1], y=[0.0, 1.0]), Line(name="c", x=[0], y=[0.5])], x_label="<b>")


def test_a_band_may_lie_unevenly_around_its_curve():
    drawn = line_chart([Line(name="success", x=[0, 50, 100], y=[0, 50, 100], band=[(0, 20), (30, 70), (80, 100)])], x_label="weight, %")
    assert "<title>50: success 50 ± 20</title>" in drawn
    assert "<title>100: success 100 (80 to 100)</title>" in drawn
    even = line_chart([Line(name="success", x=[0, 50], y=[10, 60], band=[(5, 15), (55, 65)])], x_label="weight, %")
    assert even == line_chart([Line(name="success", x=[0, 50], y=[10, 60], ci95=[5, 5])], x_label="weight, %")
