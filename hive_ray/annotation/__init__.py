"""Ranking by people: tasks, assignments, answers and their quality, in a database.

candidates -> tasks -> leases -> answers -> rankings

The database holds no pictures of tasks. A task names its prompt and its edits, and `serve/` reads their pictures from
the run folder.
"""
