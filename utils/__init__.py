"""What all other folders use: ranks, files, errors, data types, weights. It imports none of them."""
