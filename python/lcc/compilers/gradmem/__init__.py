"""GradMem (arXiv 2603.13875): a memory written by a few gradient steps on the text itself, from a learned start."""
