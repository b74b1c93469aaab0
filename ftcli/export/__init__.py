"""One stand-alone model from base and adapter, proven equal to them."""
