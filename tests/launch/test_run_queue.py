"""Who trains what next, and what becomes of runs whose group is lost or that fail."""

from lakd_ray.launch.run_queue import RunQueue

NEEDS = {"en": [], "fi": [], "kd": ["all"], "all": [], "mtkd": ["en", "fi"], "more": ["mtkd"]}


def events(queue: RunQueue) -> list[tuple[str, str]]:
    return [(event["event"], event["run"]) for event in queue.drain_events()]


def test_two_groups_train_each_run_once_and_nothing_before_what_it_needs():
    queue = RunQueue(NEEDS)
    done: list[str] = []
    busy: dict[str, str] = {}
    while queue.remaining():
        for group in ("one", "two"):
            what, run = queue.next_run(group)
            if what == "run":
                assert set(NEEDS[run]) <= set(done)
                busy[group] = run
        for group, run in busy.items():
            queue.mark_done(group)
            done.append(run)
        busy = {}
    assert sorted(done) == sorted(NEEDS)
    assert queue.next_run("one") == queue.next_run("two") == ("end", "")
    assert [name for name, _ in events(queue)].count("finished") == len(NEEDS)


def test_a_group_waits_for_what_another_one_trains():
    queue = RunQueue({"en": [], "mtkd": ["en"]})
    assert queue.next_run("one") == ("run", "en")
    assert queue.next_run("two") == ("wait", "")
    queue.mark_done("one")
    assert queue.next_run("two") == ("run", "mtkd")
    assert queue.next_run("one") == ("end", "")


def test_what_a_lost_group_had_goes_to_the_next_one_that_asks():
    queue = RunQueue({"en": [], "fi": []})
    queue.next_run("one")
    assert queue.requeue("one") == "en"
    assert queue.requeue("one") is None
    assert queue.next_run("two") == ("run", "en")
    assert queue.next_run("one") == ("run", "fi")


def test_what_needs_a_failed_run_is_given_up_with_it_and_nothing_else():
    queue = RunQueue(NEEDS)
    queue.next_run("one")
    queue.requeue("one")
    queue.abandon("en", "the loss is nan")
    assert events(queue) == [("started", "en"), ("failed", "en"), ("failed", "mtkd"), ("failed", "more")]
    taken = []
    while (found := queue.next_run("one"))[0] == "run":
        taken.append(found[1])
        queue.mark_done("one")
    assert taken == ["fi", "all", "kd"]


def test_a_closed_queue_hands_out_nothing():
    queue = RunQueue({"en": [], "fi": []})
    queue.next_run("one")
    queue.close()
    assert queue.next_run("two") == ("end", "")
    queue.mark_done("one")
    assert queue.remaining() == 0
