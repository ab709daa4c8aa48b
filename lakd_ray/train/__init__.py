"""Train one run on one rank, without Ray: `lakd_ray.launch` starts the ranks and `lakd_ray.tune` the trials.

- `trainer.train_run` trains a run from start to end, or from where it was interrupted.
- `data_loader` turns the plan of an epoch into batches; `step` computes the losses of a batch.
- `engines` updates the weights, with torch alone or with DeepSpeed.
- `checkpointing` saves and restores states; `monitoring` and `flops` measure time, memory, losses and arithmetic.
"""
