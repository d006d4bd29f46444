"""GradMem's telling contrast: writes that are learned through, and writes whose gradient counts as a constant."""
