"""What is to be mended before a cluster, or this machine, is used: `python -m launch.doctor`."""
