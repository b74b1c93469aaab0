"""What a set of rows is like: twins, contradictions, lengths, and the form of its answers."""
