"""Each op beside its peers: shapes, peers, and the pytest-benchmark files that time them."""
