"""Data: readers, checks, labels, shards, and the pipeline that turns them into a Batch."""
