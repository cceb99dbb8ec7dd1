"""Which weights to compose with: candidates, races on common seeds, a prior from demonstrations, an honest report."""
