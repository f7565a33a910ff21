"""`r1ranker experiment NAME`: from data to a table of rankers, trained and not, over several seeds, beside baselines."""
