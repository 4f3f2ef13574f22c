"""Suites on SLURM: what is asked for, how it is packed and submitted, what became of it, what is wrong here."""
