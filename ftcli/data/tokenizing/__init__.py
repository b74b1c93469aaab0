"""Messages → token ids and labels, as every command makes them."""
