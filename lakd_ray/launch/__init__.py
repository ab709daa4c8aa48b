"""Training on Ray Train worker groups.

`driver.train_tasks` trains runs and returns when all are done. Its parts: `plan` (the runs of a grid and their cost),
`run_queue` (hands runs to worker groups), `worker` (the loop of every rank), `rank_collectives` (collective operations
of the ranks), `run_inputs` (inputs of a run and its check for leakage), `teacher_logits` (logits of a run's teachers),
`event_log` and `run_log` (events for the user), `tracking` (experiment trackers).
"""
