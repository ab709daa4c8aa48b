"""Order of runs in the queue, lost worker groups, and failed runs."""

from lakd_ray.launch.run_queue import RunQueue

DEPENDENCIES = {"en": [], "fi": [], "kd": ["all"], "all": [], "mtkd": ["en", "fi"], "more": ["mtkd"]}


def events(queue: RunQueue) -> list[tuple[str, str]]:
    return [(event["event"], event["run"]) for event in queue.drain_events()]


def test_two_groups_train_each_run_once_and_after_its_dependencies():
    queue = RunQueue(DEPENDENCIES)
    done: list[str] = []
    busy: dict[str, str] = {}
    while queue.remaining():
        for group in ("one", "two"):
            action, run = queue.next_run(group)
            if action == "run":
                assert set(DEPENDENCIES[run]) <= set(done)
                busy[group] = run
        for group, run in busy.items():
            queue.mark_done(group)
            done.append(run)
        busy = {}
    assert sorted(done) == sorted(DEPENDENCIES)
    assert queue.next_run("one") == queue.next_run("two") == ("end", "")
    assert [name for name, _ in events(queue)].count("finished") == len(DEPENDENCIES)


def test_a_group_waits_for_the_dependency_that_is_training():
    queue = RunQueue({"en": [], "mtkd": ["en"]})
    assert queue.next_run("one") == ("run", "en")
    assert queue.next_run("two") == ("wait", "")
    queue.mark_done("one")
    assert queue.next_run("two") == ("run", "mtkd")
    assert queue.next_run("one") == ("end", "")


def test_the_run_of_a_lost_group_is_the_next_one():
    queue = RunQueue({"en": [], "fi": []})
    queue.next_run("one")
    assert queue.requeue("one") == "en"
    assert queue.requeue("one") is None
    assert queue.next_run("two") == ("run", "en")
    assert queue.next_run("one") == ("run", "fi")


def test_dependents_of_a_failed_run_are_abandoned_and_no_others():
    queue = RunQueue(DEPENDENCIES)
    queue.next_run("one")
    queue.requeue("one")
    queue.abandon("en", "the loss is nan")
    assert events(queue) == [("started", "en"), ("failed", "en"), ("failed", "mtkd"), ("failed", "more")]
    trained = []
    while (task := queue.next_run("one"))[0] == "run":
        trained.append(task[1])
        queue.mark_done("one")
    assert trained == ["fi", "all", "kd"]


def test_a_closed_queue_has_no_runs():
    queue = RunQueue({"en": [], "fi": []})
    queue.next_run("one")
    queue.close()
    assert queue.next_run("two") == ("end", "")
    queue.mark_done("one")
    assert queue.remaining() == 0


def test_a_request_to_stop_ends_groups_in_training_and_the_driver_waits_for_them_alone():
    queue = RunQueue({"en": [], "fi": [], "all": []})
    assert [queue.next_run(group) for group in ("one", "two")] == [("run", "en"), ("run", "fi")]
    assert not queue.should_stop("one")  # group two has not begun to train
    assert queue.stop() == ["en"]
    assert queue.should_stop("one")
    queue.mark_stopped("one", "epoch 2, step 3")
    assert queue.stoppable_runs() == []
    assert queue.next_run("three") == ("end", "")
    assert queue.drain_events()[-1] == {"event": "message", "run": "en", "reason": "saved at epoch 2, step 3"}
