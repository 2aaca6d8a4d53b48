"""What is run with the simulator: one module for each question."""
