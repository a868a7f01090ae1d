"""Figures of merit, slices, calibration and comparisons over seeds."""
