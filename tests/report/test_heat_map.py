import io

import numpy as np
from PIL import Image

from smdtrack.record import read_run
from smdtrack.report.heat_map import ABOVE, BELOW, heat_map, png
from tests.report.synthetic_runs import make_record


def test_cells_are_ratios_of_root_mean_squares(tmp_path):
    run = read_run(make_record(tmp_path / "a", every=1, start=3.0))
    found = heat_map(run, 30)
    assert found.ratios.shape == (5, 30)
    inside = (run.steps >= found.first_steps[4]) & (run.steps <= found.last_steps[4])
    angle, line = run.values["angle"][inside], run.values["angle_eq"][inside]
    np.testing.assert_allclose(found.ratios[:, 4], np.sqrt((angle**2).mean(0) / (line**2).mean(0)))
    assert found.first_steps[0] == run.steps[0]
    assert found.last_steps[-1] == run.steps[-1]


def test_a_run_without_lines_has_no_map(tmp_path):
    run = read_run(make_record(tmp_path / "a"))
    without = {family: table for family, table in run.values.items() if family != "angle_eq"}
    assert heat_map(type(run)(**{**run.__dict__, "values": without})) is None


def test_colours_as_another_decoder_reads_them():
    image = Image.open(io.BytesIO(png(np.array([[1.0, 2.0, 0.5], [8.0, np.sqrt(2), np.nan]]))))
    assert image.size == (3, 2)
    assert image.mode == "RGBA"
    pixel = image.getpixel
    assert pixel((0, 0))[3] == 0
    assert pixel((1, 0)) == (*ABOVE, 255) == pixel((0, 1))
    assert pixel((2, 0)) == (*BELOW, 255)
    assert pixel((1, 1)) == (*ABOVE, 128)
    assert pixel((2, 1)) == (128, 128, 128, 90)
