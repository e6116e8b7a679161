"""The agent's job table: what follows what, and that a task always ends in an update, a report or a withdrawal."""

from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent import job as jobs
from protocol.messages import BlobRef, OptimizerSpec, Task


def task(round_: int = 1, run: str = "run") -> Task:
    return Task(
        run=run,
        round=round_,
        manifest=BlobRef(b"m" * 32, 100),
        model=BlobRef(b"v" * 32, 40),
        version=round_ - 1,
        local_steps=3,
        local_epochs=0,
        batch_size=4,
        learning_rate=0.1,
        optimizer=OptimizerSpec(),
        codec="all/float32",
        seed=7,
        time_left_s=60.0,
    )


def follow(*events: jobs.Event) -> tuple[jobs.Job, list[jobs.Decision]]:
    job = jobs.Job()
    said: list[jobs.Decision] = []
    for event in events:
        job, decisions = jobs.decide(job, event)
        said += decisions
    return job, said


def test_a_task_is_remembered_fetched_trained_packed_and_forgotten_in_this_order() -> None:
    job, said = follow(jobs.Assigned(task()), jobs.Prepared(), jobs.Trained(), jobs.Packed())
    assert job == jobs.Job()
    assert said == [
        jobs.Remember(task()),
        jobs.Fetch(),
        jobs.Report("run/1", "accepted"),
        jobs.Train(),
        jobs.Pack(),
        jobs.Forget(),
    ]


def test_a_task_sent_twice_is_done_once_and_answered_again() -> None:
    job, said = follow(jobs.Assigned(task()), jobs.Prepared(), jobs.Assigned(task()))
    assert job.phase == "training"
    assert said.count(jobs.Train()) == 1
    assert said[-1] == jobs.Report("run/1", "accepted")


def test_a_newer_task_replaces_one_that_is_fetched_and_an_older_one_does_not() -> None:
    job, said = follow(jobs.Assigned(task(2)), jobs.Assigned(task(3)))
    assert job == jobs.Job("fetching", task(3))
    assert said[-3:] == [jobs.Forget(), jobs.Remember(task(3)), jobs.Fetch()]
    assert jobs.decide(job, jobs.Assigned(task(2))) == (job, ())


def test_a_task_in_training_is_kept_until_it_is_withdrawn_and_a_newer_one_is_answered_with_it() -> None:
    job, said = follow(jobs.Assigned(task(2)), jobs.Prepared(), jobs.Assigned(task(3)))
    assert job == jobs.Job("training", task(2))
    assert said[-1] == jobs.Report("run/2", "accepted")
    job, _ = jobs.decide(job, jobs.Withdrawn("run/2"))
    assert jobs.decide(job, jobs.Assigned(task(3)))[0] == jobs.Job("fetching", task(3))


def test_a_task_of_another_run_replaces_the_one_in_hand_whatever_its_number() -> None:
    job, _ = follow(jobs.Assigned(task(9)), jobs.Assigned(task(1, run="after a new start")))
    assert job.task == task(1, run="after a new start")


def test_a_withdrawal_ends_only_the_task_it_names() -> None:
    job, _ = follow(jobs.Assigned(task(2)), jobs.Withdrawn("run/1"))
    assert job.phase == "fetching"
    job, said = follow(jobs.Assigned(task(2)), jobs.Withdrawn("run/2"))
    assert job == jobs.Job()
    assert said[-1] == jobs.Forget()


def test_a_task_that_cannot_be_done_is_reported_with_its_reason() -> None:
    job, said = follow(jobs.Assigned(task()), jobs.Stopped("refused", "data", "no examples"))
    assert job == jobs.Job()
    assert jobs.Report("run/1", "refused", "data", "no examples") in said


EVENTS = st.one_of(
    st.builds(jobs.Assigned, st.builds(task, st.integers(1, 3), st.sampled_from(["run", "other"]))),
    st.just(jobs.Prepared()),
    st.just(jobs.Trained()),
    st.just(jobs.Packed()),
    st.builds(jobs.Withdrawn, st.sampled_from(["run/1", "run/2", "other/1"])),
    st.just(jobs.Stopped("failed", "diverged", "nan")),
)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.lists(EVENTS, max_size=30))
def test_whatever_happens_every_remembered_task_is_forgotten_before_idle(events: list[jobs.Event]) -> None:
    job, held = jobs.Job(), 0
    for event in events:
        job, decisions = jobs.decide(job, event)
        for decision in decisions:
            held += isinstance(decision, jobs.Remember)
            held -= isinstance(decision, jobs.Forget)
        assert held == (job.phase != "idle")


def test_a_task_waits_from_fetching_or_training_and_is_prepared_anew() -> None:
    for before in ((), (jobs.Prepared(),)):
        job, said = follow(jobs.Assigned(task()), *before, jobs.Paused("hot"))
        assert job == jobs.Job("waiting", task(), "hot")
        assert said[-2:] == [jobs.Report("run/1", "accepted", "ineligible", "hot"), jobs.Suspend()]
        job, decisions = jobs.decide(job, jobs.Resumed())
        assert job == jobs.Job("fetching", task())
        assert decisions == (jobs.Report("run/1", "accepted"), jobs.Fetch())


def test_a_task_that_waits_is_kept_like_one_in_training_and_says_why() -> None:
    job, said = follow(jobs.Assigned(task(2)), jobs.Paused("hot"), jobs.Assigned(task(3)), jobs.Assigned(task(2)))
    assert job == jobs.Job("waiting", task(2), "hot")
    assert said[-2:] == [jobs.Report("run/2", "accepted", "ineligible", "hot")] * 2
    assert jobs.decide(job, jobs.Paused("hot and dark"))[0] == jobs.Job("waiting", task(2), "hot and dark")
    assert jobs.decide(job, jobs.Withdrawn("run/2")) == (jobs.Job(), (jobs.Forget(),))
    assert jobs.decide(job, jobs.Stopped("refused", "ineligible", "hot"))[0] == jobs.Job()
