"""What heads do alone, together, and for each other, by ablating them."""
