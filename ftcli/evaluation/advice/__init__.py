"""Is fine-tuning the right thing for these rows, and what would it take?"""
