"""Who trains what next, and what becomes of runs whose group is lost or that fail."""

from lakd_ray.train.queue import Queue

NEEDS = {"en": [], "fi": [], "kd": ["all"], "all": [], "mtkd": ["en", "fi"], "more": ["mtkd"]}


def events(queue: Queue) -> list[tuple[str, str]]:
    return [(event["event"], event["run"]) for event in queue.news()]


def test_two_groups_train_each_run_once_and_nothing_before_what_it_needs():
    queue = Queue(NEEDS)
    done: list[str] = []
    busy: dict[str, str] = {}
    while queue.left():
        for group in ("one", "two"):
            what, run = queue.take(group)
            if what == "run":
                assert set(NEEDS[run]) <= set(done)
                busy[group] = run
        for group, run in busy.items():
            queue.done(group)
            done.append(run)
        busy = {}
    assert sorted(done) == sorted(NEEDS)
    assert queue.take("one") == queue.take("two") == ("end", "")
    assert [name for name, _ in events(queue)].count("finished") == len(NEEDS)


def test_a_group_waits_for_what_another_one_trains():
    queue = Queue({"en": [], "mtkd": ["en"]})
    assert queue.take("one") == ("run", "en")
    assert queue.take("two") == ("wait", "")
    queue.done("one")
    assert queue.take("two") == ("run", "mtkd")
    assert queue.take("one") == ("end", "")


def test_what_a_lost_group_had_goes_to_the_next_one_that_asks():
    queue = Queue({"en": [], "fi": []})
    queue.take("one")
    assert queue.give_back("one") == "en"
    assert queue.give_back("one") is None
    assert queue.take("two") == ("run", "en")
    assert queue.take("one") == ("run", "fi")


def test_what_needs_a_failed_run_is_given_up_with_it_and_nothing_else():
    queue = Queue(NEEDS)
    queue.take("one")
    queue.give_back("one")
    queue.give_up("en", "the loss is nan")
    assert events(queue) == [("started", "en"), ("failed", "en"), ("failed", "mtkd"), ("failed", "more")]
    taken = []
    while (found := queue.take("one"))[0] == "run":
        taken.append(found[1])
        queue.done("one")
    assert taken == ["fi", "all", "kd"]


def test_a_closed_queue_hands_out_nothing():
    queue = Queue({"en": [], "fi": []})
    queue.take("one")
    queue.close()
    assert queue.take("two") == ("end", "")
    queue.done("one")
    assert queue.left() == 0
