"""Stage 2: data, losses and objectives of the tokenizer's training."""
