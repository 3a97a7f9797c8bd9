"""Language models behind the OpenAI client: endpoints, batches, finetuning; answers are kept and paid once."""
