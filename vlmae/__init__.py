"""Audio-enhanced vision-language models: clips in, tokens and task probabilities out."""

import lsb  # noqa: F401  # sets how OpenMP threads wait, before torch is loaded
