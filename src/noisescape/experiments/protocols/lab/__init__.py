"""The work of the theory lab's experiments, a file each."""
