"""The search for distillation settings: Ray Tune with Optuna and ASHA, on dev alone."""
