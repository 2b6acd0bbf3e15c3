"""Compile and run: graph writers, engines, devices, parity and bench."""
