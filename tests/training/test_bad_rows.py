"""What one rank does about bad rows; two of them: test_training.py."""

import numpy as np
import pytest
import torch
from torch import distributed

from hive_ray.errors import BadRows, Stopped
from hive_ray.training.bad_rows import SKIPPED_ROWS, RowQuarantine


class Rows:
    """Ten rows in memory, as a RowStore gives them."""

    num_rows, key = 10, "point_id"

    def read(self, places):
        return [{"point_id": f"p{place}", "place": place} for place in places.tolist()]


class Prepare:
    """Places of the rows it is given, and noise; counts how often it is asked, and refuses bad ones."""

    def __init__(self, *bad):
        self.bad, self.asked = set(bad), []

    def __call__(self, rows, generator):
        self.asked.append([row["place"] for row in rows])
        reasons = {index: "cracked" for index, row in enumerate(rows) if row["place"] in self.bad}
        if reasons:
            raise BadRows(reasons)
        places = torch.tensor([row["place"] for row in rows])
        return {"places": places, "noise": torch.rand(len(rows), generator=generator)}


@pytest.fixture
def alone():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_without_bad_rows_nothing_is_done_twice():
    good, prepare = RowQuarantine(Rows(), "line", 0.1), Prepare()
    batch, count = good.take(good.prepare(prepare, np.array([3, 5]), ("batch", 0)))
    assert (prepare.asked, count, batch["places"].tolist(), good.local_bad_rows) == ([[3, 5]], 2, [3, 5], {})
    assert good.average_good_rows({"train/loss": 0.1, SKIPPED_ROWS: 0.0}, 2, 0) == {"train/loss": 0.1, SKIPPED_ROWS: 0}


def test_a_batch_goes_on_without_its_bad_rows_and_remembers_them(alone, capsys):
    good, prepare = RowQuarantine(Rows(), "line", 0.1), Prepare(5)
    batch, count = good.take(good.prepare(prepare, np.array([3, 5, 7]), ("batch", 0)))
    assert (prepare.asked, count, batch["places"].tolist()) == ([[3, 5, 7], [3, 7]], 2, [3, 7])
    again = RowQuarantine(Rows(), "line", 0.1).prepare(Prepare(), np.array([3, 7]), ("batch", 0))
    assert torch.equal(batch["noise"], again.batch["noise"])  # the same draws as if the row had never been there
    assert good.average_good_rows({"train/loss": 2.0, SKIPPED_ROWS: 1 / 3}, 3, 6) == pytest.approx(
        {"train/loss": 3.0, SKIPPED_ROWS: 7}
    )
    assert capsys.readouterr().out == "line: skipped p5: cracked\n"

    good.take(good.prepare(prepare, np.array([5, 1]), ("batch", 1)))
    assert prepare.asked[2:] == [[1]]
    good.average_good_rows({SKIPPED_ROWS: 0.5}, 2, 7)
    assert capsys.readouterr().out == ""  # said once


def test_a_batch_without_a_good_row_runs_the_model_on_another_that_counts_nothing():
    good = RowQuarantine(Rows(), "line", 0.5)
    batch, count = good.take(good.prepare(Prepare(*range(9)), np.array([3, 5]), ("batch", 0)))
    assert (count, batch["places"].tolist()) == (0, [9])
    assert {3, 5} <= good.local_bad_rows.keys()


def test_what_is_found_ahead_of_time_is_known_from_when_it_is_taken(alone, capsys):
    good, prepare = RowQuarantine(Rows(), "line", 0.5), Prepare(5)
    this, coming = (good.prepare(prepare, np.array(places), ("batch", 0)) for places in ([3, 5], [5, 7]))
    assert good.local_bad_rows == good.bad_rows == {}
    good.take(this)
    good.average_good_rows({SKIPPED_ROWS: 0.5}, 2, 0)
    assert good.take(coming)[1] == 1
    good.average_good_rows({SKIPPED_ROWS: 0.5}, 2, 1)
    assert capsys.readouterr().out == "line: skipped p5: cracked\n"  # once
    assert prepare.asked == [[3, 5], [3], [5, 7], [7]]


def test_a_batch_that_was_prepared_before_its_row_was_found_bad_goes_on_without_it(alone):
    good, fussy, mild = (
        RowQuarantine(Rows(), "line", 0.5),
        Prepare(5),
        Prepare(),
    )  # as of two draws, one sees what is broken
    this, coming = (
        good.prepare(batch_of, np.array([5, place]), ("batch", place)) for batch_of, place in ((fussy, 3), (mild, 7))
    )
    good.take(this)
    good.average_good_rows({SKIPPED_ROWS: 0.5}, 2, 0)
    batch, count = good.take(coming)
    assert (batch["places"].tolist(), count) == ([7], 1)
    now = good.prepare(Prepare(), np.array([5, 7]), ("batch", 7))
    assert torch.equal(batch["noise"], now.batch["noise"])


def test_a_table_without_a_good_row_ends_training():
    with pytest.raises(Stopped, match="line: all 10 rows are bad, such as p3: cracked"):
        RowQuarantine(Rows(), "line", 1.0).prepare(Prepare(*range(10)), np.array([3, 5]), ("batch", 0))


def test_too_many_bad_rows_stop_with_ten_of_their_ids_at_most(alone):
    good = RowQuarantine(Rows(), "line", 0.1)
    good.local_bad_rows = {place: f"p{place}: cracked" for place in range(12)}
    with pytest.raises(
        Stopped, match=r"12 of 10 .* \(0\.1\) allows: p0: cracked; p1.*; p9: cracked; and 2 more\. Repair"
    ):
        good.average_good_rows({SKIPPED_ROWS: 1.0}, 1, 0)
