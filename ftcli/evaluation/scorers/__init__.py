"""What an answer is worth: one class for each kind of score."""
