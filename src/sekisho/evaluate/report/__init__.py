"""The report: one signed HTML file in two languages that shows every figure with what it rests on."""
