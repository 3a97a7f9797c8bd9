"""People's work on candidates: tasks, who ranks what, their answers, and how far to trust them, in a database.

candidates -> tasks -> leases -> answers -> rankings

Pictures are never here: a task names its prompt and its edits, and `serve/` reads their pictures from the run folder.
"""
