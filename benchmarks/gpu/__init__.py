"""The ten-minute run on a GPU: is every kernel right, and how near is it to what the machine can do."""
