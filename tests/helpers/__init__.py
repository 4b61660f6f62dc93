"""Code shared by the tests: reference answers, hostile models, a local Hub, programs run in separate processes."""
