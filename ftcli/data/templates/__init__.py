"""Chat templates come with models, which strangers have made: rendered within limits."""
