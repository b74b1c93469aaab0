"""Open what was trained; score rows, answer prompts."""
