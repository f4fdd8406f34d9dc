"""From clips to batches: prepare, decode, the frozen-prefix cache, training sets."""
