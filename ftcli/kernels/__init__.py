"""What makes a training fast and changes nothing in it: each lever in a file of its own."""
