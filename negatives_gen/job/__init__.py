"""The job that makes a negative set: staging, Ray Data's pipeline, progress."""
