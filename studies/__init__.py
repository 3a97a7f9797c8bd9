"""What the authors run once: the study of what feedback adds, and what the embedded domain ships."""
