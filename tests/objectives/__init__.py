"""Exact tests of the objectives: every expectation here is a finite sum, not a sample."""
