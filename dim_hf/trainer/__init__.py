"""The Trainer of the method, its arguments, and the job that the command line runs."""
