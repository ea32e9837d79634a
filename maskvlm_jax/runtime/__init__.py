"""The process and the machine under it: errors, files, buckets, signals, settings of libraries."""
