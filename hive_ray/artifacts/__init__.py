"""What stages leave: Parquet tables and model folders that are finished or absent. No Ray, no DeepSpeed.

manifest     what a finished table is, and what decides it: the fingerprint
building     make a table: build, resume, keep or refuse
selection    which rows of a table are read, and how
dropped      what is kept of rows that were dropped
joined       rows of two tables with the same ids
chosen       the prompts that people rank first
model_store  model folders, with how they were made
progress     a progress line every few seconds
"""
