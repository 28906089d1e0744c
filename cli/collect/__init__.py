"""`resilience collect`: many URLs from hosts that misbehave, with a journal that survives being stopped."""
