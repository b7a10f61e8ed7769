"""Side-by-side timings against other libraries; run with ``make bench``."""
