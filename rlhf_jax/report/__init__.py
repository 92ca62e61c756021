"""The report: what a person looks at after a run."""
