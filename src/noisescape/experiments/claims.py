def ledger(runs):
    return []
