"""The paper's runs, by name and as values, and its figures drawn from them."""
