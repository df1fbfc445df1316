"""Models judged by MTEB, the Massive Text Embedding Benchmark; needs the extra ``mteb``."""
