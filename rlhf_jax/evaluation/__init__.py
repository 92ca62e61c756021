"""Evaluation: preference accuracy and calibration, win rates with intervals, KL, lengths, best-of-n curves."""
