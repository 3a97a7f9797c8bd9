"""Ray Serve applications: editor.py (edits over HTTP), annotate.py (rankings by people), web/ (pages)."""
