"""Audio-enhanced vision-language models: clips in, tokens and task probabilities out."""
