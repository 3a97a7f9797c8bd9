"""Reading of files that users provide (text, settings, pictures, models), S3, and scratch space."""
