"""One training loop for any `Objective`. DeepSpeed lives here, and nowhere else.

loop         what a worker does: steps, checkpoints, validation
objectives   what is learned: rows -> batches -> loss -> a model folder
engine       DeepSpeed's engine from our settings, and what it will hold in memory
checkpoints  the state of a training, whole or absent; weights, of which the average is one
rows         a batch's rows by the number of images seen; `bad_rows` that cannot be read; `ahead` of their step
validation   measures of held-out rows; `watching` tells them to the log, TensorBoard and trackers
"""
