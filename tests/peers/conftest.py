"""Nothing here but test_*.py is for pytest: the makers import peers that `make test` does not install."""

collect_ignore_glob = ["__main__.py", "make_*.py", "gguf_to_transformers.py", "environment.py"]
