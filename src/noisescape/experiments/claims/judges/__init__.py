"""The judges: each turns a run into the verdicts on one claim."""
