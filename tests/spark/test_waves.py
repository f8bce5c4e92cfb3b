"""How many waves run at once, and what watching them costs."""

import threading

import pytest
from pyspark.sql import SparkSession

from dolly_batch.spark.generate import jobs
from dolly_batch.spark.generate.jobs import Job, run_watched

SOON_S = 20.0


def test_a_cluster_that_grows_runs_more_waves_at_once(spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two waves of four tasks where eight tasks are wanted; six of them once there are twenty."""
    monkeypatch.setattr(jobs, "LOOK_S", 0.05)
    wanted, begun, end = [8], threading.Semaphore(0), threading.Event()

    def wave() -> None:
        begun.release()
        assert end.wait(SOON_S)

    def grow() -> None:
        assert all(begun.acquire(timeout=SOON_S) for _ in range(2))
        assert not begun.acquire(timeout=0.5)
        wanted[0] = 21
        assert all(begun.acquire(timeout=SOON_S) for _ in range(4))
        assert not begun.acquire(timeout=0.5)
        end.set()

    growing = Job(grow, num_tasks=0)
    run_watched(spark, [growing, *[Job(wave, num_tasks=4)] * 9], lambda: None, at_least=2, num_wanted=lambda: wanted[0])
    assert sum(begun.acquire(blocking=False) for _ in range(9)) == 3


def test_the_next_wave_does_not_wait_for_a_look_at_the_last_one(spark: SparkSession) -> None:
    last, looked = threading.Event(), []

    def tick() -> None:
        looked.append(last.wait(SOON_S))

    run_watched(spark, [Job(lambda: None), Job(lambda: None), Job(last.set)], tick)
    assert looked
    assert all(looked)


def test_a_fault_of_watching_ends_the_run(spark: SparkSession) -> None:
    over = threading.Event()

    def tick() -> None:
        over.set()
        raise ValueError("seen")

    def wave() -> None:
        assert over.wait(SOON_S)

    with pytest.raises(ValueError, match="seen"):
        run_watched(spark, [Job(wave)], tick)
