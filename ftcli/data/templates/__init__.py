"""Chat templates: chosen, and rendered within limits, because strangers wrote them."""
