"""Bare programs for microcontrollers: cross-compiled, linked, run, counted on emulated boards."""
