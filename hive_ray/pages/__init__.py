"""HTML pages and charts for people. matplotlib lives here, and nowhere else."""
