"""What people prefer: rankings -> reward model -> what a reward means for training."""
