"""Reading what other code wrote."""
