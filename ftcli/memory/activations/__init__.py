"""What a step keeps and makes: its layers, what adapters keep of them, and the head."""
