"""What `ftcli estimate-vram` answers."""
