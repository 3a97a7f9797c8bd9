"""Agreement of people, intervals, preferences, effective sample size, and the choice of prompts by spread."""
