"""The only package that imports ray or deepspeed; it receives callables and rows and names no model.

cluster      start or join Ray; refuse work that the cluster can never place
progress     one printed line every few seconds
tables       checked Parquet in and out; manifest written last; resume
mapping      run a plain actor over a table with Ray Data
training     fit: TorchTrainer + DeepSpeed, one loop for any Objective
checkpoints  training checkpoints -> portable model folders
"""
