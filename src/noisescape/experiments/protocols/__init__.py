"""What the experiments do: the work behind their descriptions, imported when it starts."""
