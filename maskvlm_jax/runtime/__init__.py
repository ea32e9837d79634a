"""What a run stands on: the process and its machine, devices and other processes, files, buckets, lines and metrics."""
