"""Reports of the theory lab's experiments: a file each draws its figure and says what it shows."""
