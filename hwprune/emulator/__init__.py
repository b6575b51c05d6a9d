"""Bare programs for microcontrollers: cross-compiled, linked, run and counted on emulated boards."""
