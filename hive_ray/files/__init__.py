"""Files as they come and go: text, settings, pictures and models of strangers; S3; scratch space."""
