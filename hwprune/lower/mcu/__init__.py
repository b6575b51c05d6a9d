"""Integer networks as plain C for microcontrollers: schedule rules, memory plan, model.c."""
