"""The parts of `examples/collector.py`: copy what you need.

- `exchange`: the fake exchanges it collects from, with their faults and their books of what they served
- `clients`: one client per exchange, by requests or by ccxt, under a breaker of its own
- `storage`: the cache in Redis and the table in PostgreSQL
- `service`: the workers - symbols, tickers, backfill, health
- `stage`: the servers and exchanges around it, and what happens to them
- `report`: what came of it, and whether the books agree
"""
