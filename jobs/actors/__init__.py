"""What workers of the stages import: no job, no command line, no DeepSpeed."""
