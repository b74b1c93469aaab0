"""`train --rehearse`: every stage with a tiny random model."""
