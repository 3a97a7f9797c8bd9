"""What stages leave: Parquet tables and model folders that are finished or absent. No Ray, no DeepSpeed.

building     checked Parquet in and out; the manifest is written last; builds resume
dropped      what is left of rows that were dropped
joined       rows of two tables by their ids
chosen       which prompts people rank first
model_store  model folders, with how they were made
progress     one line every few seconds
"""
