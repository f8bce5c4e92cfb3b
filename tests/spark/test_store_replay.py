"""Schedules of the store's model on a real Delta table: after each step the table is the model's."""

from functools import cache

import pytest

from tests.spark.desk import Desk
from tests.spark.replay import replay
from tests.store_model.schedules import RecordedWorld, Schedule, recorded, schedules, telling
from tests.store_model.starts import TO_THE_END

NUM_FEW, NUM_MANY = 2, 50


@cache
def few() -> list[Schedule]:
    return telling(schedules(150, num_steps=4), NUM_FEW, max_runs=3)


@cache
def many() -> list[Schedule]:
    return telling(schedules(800, num_steps=6), NUM_MANY, max_runs=4)


def overtaken_while_it_plans(world: RecordedWorld) -> None:
    """A start has read the input, which then changes, and a start of another job answers what is asked now."""
    world.put([("a", "one")])
    late = world.start("first")
    world.advance_to(late, "look at the output")
    world.put([("a", "two")])
    world.advance(world.start("second"), TO_THE_END)
    world.advance(late, TO_THE_END)
    assert [row.text for row in world.rows()] == ["two"]


def test_who_has_read_an_older_input_is_the_older_plan_however_late_it_looks_at_the_output(delta_desk: Desk) -> None:
    replay(delta_desk, recorded("merge", ["first", "second"], overtaken_while_it_plans))


@pytest.mark.long
@pytest.mark.parametrize("number", range(NUM_FEW))
def test_a_schedule_of_the_model_leaves_the_same_rows_in_a_delta_table(delta_desk: Desk, number: int) -> None:
    replay(delta_desk, few()[number])


@pytest.mark.chaos
@pytest.mark.parametrize("number", range(NUM_MANY))
def test_fifty_schedules_of_the_model_leave_the_same_rows_in_a_delta_table(delta_desk: Desk, number: int) -> None:
    replay(delta_desk, many()[number])
