"""One training loop for any `Objective`. The only room that imports DeepSpeed. It does not import Ray.

loop           what a worker does: steps, checkpoints, validation
job            what a worker receives
objectives     the protocol of a model to train: rows -> batches -> loss -> a model folder
engine         DeepSpeed's engine from our settings, optimiser steps, memory estimates
deepspeed_fixes  every use of DeepSpeed's and PyTorch's internals
checkpoints    saves and loads the training state, complete or not at all
weights        the moving average of the weights, and the full weights from ZeRO partitions
rows           which rows make a batch, and a local cache of rows
bad_rows       skips and counts rows that cannot be used
prefetching    prepares the next batch while a GPU computes
collectives    values and waits that all ranks share
validation     the held-out rows and their measures
watching       log, progress line, pictures and warnings; `trackers` for TensorBoard, W&B and MLflow
early_warnings   detects a training that goes wrong
"""
