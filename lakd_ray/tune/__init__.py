"""Hyperparameter search for the distillation settings of a student, with Ray Tune, Optuna and ASHA, on dev only.

`run.run_search` is the stage. Its parts: `study` (what to try and when to stop), `ray_adapter` (Ray Tune's interfaces),
`trial` (training of one student), `results` (ranking and comparison), `html_report` (the page of `lakd tune-report`).
"""
