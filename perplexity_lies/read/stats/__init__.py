"""Estimators, one family a file: arrays in, estimates with intervals out."""
