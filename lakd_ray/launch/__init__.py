"""Training on Ray Train worker groups.

`driver.train_tasks` trains runs and returns when all are done. Its parts: `plan` (the runs of a grid and their cost),
`run_queue` (hands runs to worker groups), `worker` (the loop of every rank), `rank_group` (collective operations of the
ranks), `teacher_logits` (inputs of a run), `progress` and `run_log` (events for the user), `tracking` (experiment
trackers).
"""
