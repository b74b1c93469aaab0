"""The gated half of an MLP as one node, which keeps gate and up and makes their product again."""
