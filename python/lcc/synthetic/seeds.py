"""Where each user of generated documents takes its seeds from: none meets another's documents.

The embedded model was trained on seeds below ``QUERIES``.
"""

# The package's own context-agnostic queries.
QUERIES = 20_000
# Documents and general queries of ``lcc demo``.
DEMO = 1_000_000
# Lessons that compilers are meta-trained on.
LESSONS = 5_000_000
# Corpora of the benchmarks of memory banks.
CORPORA = 7_000_000
# Suites of ``lcc eval``.
SUITES = 9_000_000
# Texts for whatever is trained beside the embedded model, and all seeds above.
FRESH = 1_000_000_000
