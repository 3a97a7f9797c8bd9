"""Language models by OpenAI-compatible APIs: requests, batches, fine-tuning, and a cache of answers."""
