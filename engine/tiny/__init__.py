"""stepdial-tiny: the small model that ships, with its tasks, tokenizer and training."""
