"""What a network costs on a microcontroller, as a function of its widths, and meeting budgets."""
